"""The number format and the attention of a training: what is faster by timing, and what the settings say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import datasets
import pytest
import tiny_models
import torch
from torch.nn.functional import scaled_dot_product_attention

from kdc.pipeline.training import environment as environments
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment, answering, attention, settle

OPEN, BF16 = Environment(seed=0, bf16=None), Environment(seed=0, bf16=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_models.build("bert", tmp_path_factory.mktemp("model"))[0]


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    ("given", "seconds", "expected"),  # of bf16 with the fused kernel, of bf16 in single steps, and of fp32
    [
        (OPEN, [0.8, 0.6, 1.0], replace(BF16, stepwise=True)),
        (OPEN, [0.8, 0.79, 1.0], BF16),  # a difference that may be noise changes nothing
        (OPEN, [1.2, 0.8, 1.0], replace(BF16, stepwise=True)),
        (OPEN, [0.95, 0.92, 1.0], replace(OPEN, bf16=False)),  # in fp32 the fused kernel is the faster one
        (BF16, [1.0, 0.8], replace(BF16, stepwise=True)),  # the format is asked for
        (BF16, [1.0, 0.95], BF16),
        (replace(OPEN, bf16=False), [], replace(OPEN, bf16=False)),
        (replace(BF16, device="cuda"), [], replace(BF16, device="cuda")),
    ],
)
def test_what_is_faster_is_taken_where_the_settings_leave_it_open(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    given: Environment,
    seconds: list[float],
    expected: Environment,
    trains: bool,
) -> None:
    timed: list[object] = []

    def least_seconds(steps: list[Callable[[], object]]) -> list[float]:
        timed.extend(step() for step in steps)
        return seconds

    monkeypatch.setattr(environments, "least_seconds", least_seconds)
    ids = [[2, 5, 7, 3]] * 40
    rows = Rows(
        [datasets.Dataset.from_dict({"row": range(40), "input_ids": ids, "length": [4] * 40, "label": [0] * 40})]
    )
    state = torch.get_rng_state()
    assert settle(given, model, rows, pad_id=0, trains=trains) == expected
    assert len(timed) == len(seconds)
    assert torch.equal(torch.get_rng_state(), state)  # with and without the comparison, a run draws the same masks
    assert all(weight.grad is None for weight in model.parameters())


def test_answers_in_bf16_are_near_those_in_fp32_and_only_where_a_cpu_answers(model: Any) -> None:
    def answers(environment: Environment) -> torch.Tensor:
        with answering(environment), torch.inference_mode():
            return model.eval()(input_ids=torch.tensor([[2, 5, 7, 3]])).logits

    fp32, bf16 = answers(replace(OPEN, bf16=False)), answers(BF16)
    assert bf16.dtype == torch.bfloat16
    torch.testing.assert_close(bf16.float(), fp32, atol=0.05, rtol=0.05)
    assert answers(OPEN).dtype == answers(replace(BF16, device="cuda")).dtype == torch.float32


def test_attention_in_single_steps_gives_what_the_fused_kernel_gives() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 4) for _ in range(3))
    mask = torch.zeros(2, 1, 7, 7).masked_fill(torch.rand(2, 1, 1, 7) < 0.3, -1e9)
    expected = torch.softmax(query @ key.transpose(-1, -2) / 2 + mask, -1) @ value
    for stepwise in (False, True):
        with attention(replace(BF16, stepwise=stepwise)), torch.profiler.profile() as profile:
            answers = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(answers, expected)
        assert any("flash" in event.name for event in profile.events() or ()) is not stepwise
