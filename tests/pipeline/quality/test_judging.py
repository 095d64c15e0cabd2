"""Which variant of an artifact a contract loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_models import write_artifact

from kdc.artifact.contract.judgement import Judgement, decide
from kdc.artifact.contract.terms import Contract, Costs, Limits
from kdc.artifact.folder import load_manifest
from kdc.pipeline.quality import judging
from kdc.pipeline.quality.judging import EvaluationAnswers, judge_variants

CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("int8_allowed", "passes", "loads"),
    [(True, "int8", "int8"), (True, "fp32", "fp32"), (False, "fp32", "fp32"), (False, "int8", "fp32")],
)
def test_a_contract_loads_no_int8_that_cost_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8_allowed: bool, passes: str, loads: str
) -> None:
    first = "int8" if int8_allowed else "fp32"
    manifest = load_manifest(write_artifact(tmp_path)).model_copy(update={"providers": {CPU: first}})

    contract = Contract(limits=Limits(max_size_mb=1.0))

    def judged(variant: str, *given: Any, seed: int) -> Judgement:
        costs = Costs(latency_ms=1.0, rows_per_s=1.0, size_mb=1.0 if variant == passes else 2.0)
        verdict, _ = decide(contract, costs, None)
        return Judgement(
            contract=contract, variant=variant, provider=CPU, cpu="c", lengths=(3,), costs=costs, verdict=verdict
        )

    monkeypatch.setattr(judging, "load", lambda artifact, contract, device, variant=None: variant or first)
    monkeypatch.setattr(judging, "judge_evaluated", judged)
    answers = EvaluationAnswers([], np.zeros(0), np.zeros((0, 2)), {})
    changed, judgement = judge_variants(
        Path(), manifest, contract, answers, device="cpu", int8_allowed=int8_allowed, seed=0
    )
    assert changed.providers[CPU] == judgement.variant == loads


@pytest.mark.parametrize(("on_gpu", "expected"), [(True, 2.0), (False, 1.0)])
def test_a_gpu_is_judged_by_what_it_answered_itself_where_it_did(on_gpu: bool, expected: float) -> None:
    logits = {"fp32": np.full((1, 2), 1.0), "fp32 (cuda)": np.full((1, 2), 2.0), "int8": np.full((1, 2), 3.0)}
    answers = EvaluationAnswers([], np.zeros(1), np.zeros((1, 2)), logits)
    assert answers.student("fp32", on_gpu=on_gpu)[0, 0] == expected
    assert answers.student("int8", on_gpu=on_gpu)[0, 0] == 3.0
