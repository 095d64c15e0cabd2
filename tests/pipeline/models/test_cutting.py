"""A student cut out of a teacher: its layers, and the neurons and heads of these."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
import transformers
from tiny_models import ARCHITECTURES, build
from transformers import AutoModelForSequenceClassification, BertConfig

from kdc.common.errors import InputError
from kdc.pipeline.models.cutting import Cut, cut, parse_cut
from kdc.pipeline.models.opening import open_classifier
from kdc.pipeline.models.possible_cuts import can_be_cut, check_cut, half_width
from kdc.pipeline.models.units import attentions, feed_forwards, first_units
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.importance import unit_importance

IDS = torch.tensor([[2, 10, 11, 3], [2, 12, 3, 0]])
# MPNet's biases of positions are made for all heads.
WITH_HEADS = [name for name in ARCHITECTURES if name != "mpnet"]
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=MASK).logits


def widened(model: Any, heads: int) -> Any:
    """The same weights as more, narrower heads."""
    kind = type(model)
    model.config.num_attention_heads = heads
    again = kind(model.config)
    again.load_state_dict(model.state_dict())
    return again.eval()


def rows_of(*texts: list[int]) -> Rows:
    from datasets import Dataset

    return Rows([Dataset.from_list([{"row": 0, "input_ids": text, "length": len(text), "label": 0} for text in texts])])


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        *((name, wanted) for name in ARCHITECTURES for wanted in (Cut((1,)), Cut((0, 1), ffn=5))),
        # 16 neurons are as many as a token vector has numbers: attention and neurons have layers of one shape then.
        *((name, wanted) for name in WITH_HEADS for wanted in (Cut((1,), 5, 1), Cut((0, 1), 16, 1), Cut((1,), 8, 1))),
    ],
)
def test_a_cut_model_survives_saving(architecture: str, wanted: Cut, tmp_path: Path) -> None:
    model, _ = build(architecture, tmp_path / "whole")
    small = cut(model, wanted, first_units).eval()
    small.save_pretrained(tmp_path / "small")
    if wanted.is_narrow:
        check_cut(str(wanted), str(tmp_path / "whole"))
        assert half_width(str(tmp_path / "small")).ffn == (wanted.ffn or 32) // 2  # it can be a teacher itself
    again = open_classifier(tmp_path / "small").eval()
    assert torch.equal(logits_of(again), logits_of(small))
    if wanted.heads is None:  # nothing of ours is needed
        assert type(again) is type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "small"))


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_head_that_says_nothing_is_the_one_that_goes(architecture: str, tmp_path: Path) -> None:
    """Catches heads that are cut across, weights of one head beside those of another, and a count that stays behind.
    The oracle is the whole model."""
    model, _ = build(architecture, tmp_path)
    model = widened(model, heads=4)
    with torch.no_grad():
        for layer, part in enumerate(attentions(model)):
            assert (part.units, part.width) == (4, 4)
            for head in ((0, 2), (2, 3))[layer]:
                part.reader.weight[:, 4 * head : 4 * (head + 1)] = 0
    before = logits_of(model)
    rows = rows_of([2, 10, 11, 3], [2, 12, 3])
    small = cut(model, Cut((0, 1), heads=2), partial(unit_importance, rows=rows, pad_id=0)).eval()
    assert [part.units for part in attentions(small)] == [2, 2]
    assert torch.allclose(logits_of(small), before, atol=1e-3)
    again = cut(small, Cut((1,), heads=1), first_units)  # a narrow model is a teacher like any other
    assert [part.units for part in attentions(again)] == [1]


def test_importance_of_heads_is_the_change_of_the_logits(tmp_path: Path) -> None:
    """By hand: each head of the last layer scaled down a little, for each row. Catches a head's numbers that are made
    absolute before they are added up, and those of two heads in one sum."""
    model = widened(build("bert", tmp_path, outputs=1)[0], heads=4).double()
    model.config.problem_type = "regression"
    texts, little = [[2, 10, 11, 3], [2, 12, 3], [2, 40, 41, 42, 43, 3]], 1e-6
    parts = [*feed_forwards(model), *attentions(model)]
    found = unit_importance(model, parts, rows_of(*texts), pad_id=0, batch_size=2)[-1]
    reader, wanted = parts[-1].reader, torch.zeros(4, dtype=torch.double)
    for text in texts:
        ids, mask = torch.tensor([text]), torch.ones(1, len(text))
        with torch.inference_mode():
            whole = model(input_ids=ids, attention_mask=mask).logits[0, 0]
            for head in range(4):
                kept = reader.weight.clone()
                reader.weight[:, 4 * head : 4 * (head + 1)] *= 1 - little
                wanted[head] += (whole - model(input_ids=ids, attention_mask=mask).logits[0, 0]).abs() / little
                reader.weight.copy_(kept)
    assert found.numpy() == pytest.approx(wanted.numpy(), rel=1e-3)


@pytest.mark.parametrize("heads", [0, 3, "2", 10**12, True, 1.5])
def test_a_config_with_heads_that_cannot_be_is_wrong_input(heads: Any, tmp_path: Path) -> None:
    """Catches a hostile config.json that takes all memory, or makes weights of a size that is not in the file."""
    build("bert", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kdc_heads": heads}))
    with pytest.raises((ValueError, RuntimeError)):
        open_classifier(tmp_path)


@pytest.mark.parametrize("spec", ["layers:0,heads=1", "layers:0,ffn=5,heads=1"])
def test_heads_that_more_is_made_for_are_refused_before_anything_is_trained(spec: str, tmp_path: Path) -> None:
    """MPNet's biases of positions are one for each head."""
    tiny_runs.base_model("mpnet", tmp_path)
    with pytest.raises(InputError, match="cannot have fewer heads"):
        check_cut(spec, str(tmp_path))
    assert half_width(str(tmp_path)).heads is None


def test_cutting_keeps_the_layers_asked_for_and_leaves_the_teacher_whole(tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path)
    small: Any = cut(model, Cut((1,), ffn=5), first_units)
    kept, whole = small.bert.encoder.layer[0].output.dense.weight, model.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(kept, whole[:, :5])
    assert model.config.num_hidden_layers == 2
    assert whole.shape == (16, 32)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_neurons_that_say_nothing_are_those_that_go(architecture: str, tmp_path: Path) -> None:
    """Catches the wrong half kept, and weights and biases of other neurons than those that are read."""
    model, _ = build(architecture, tmp_path)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for part in feed_forwards(model):
            part.makers[0].bias.normal_()
            part.reader.weight[:, random.permutation(32)[:12]] = 0
    before = logits_of(model)
    rows = rows_of([2, 10, 11, 3], [2, 12, 3])
    small = cut(model, Cut((0, 1), ffn=20), partial(unit_importance, rows=rows, pad_id=0)).eval()
    assert [part.units for part in feed_forwards(small)] == [20, 20]
    assert torch.allclose(logits_of(small), before, atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (1, "regression"),
        (2, "single_label_classification"),
        (3, "single_label_classification"),
        (3, "multi_label_classification"),
    ],
)
def test_importance_is_the_change_of_the_logits(outputs: int, kind: str, tmp_path: Path) -> None:
    """By hand: each neuron of the last layer scaled down a little, for each row; of several outputs, over many mixtures
    of them, in the mean. Catches sums over rows and tokens in the wrong order, padding that counts, rows that count for
    nothing, and what a softmax does not see but single labels do."""
    model, _ = build("bert", tmp_path, outputs=outputs)
    model.double().config.problem_type = kind
    texts, little, neurons = [[2, 10, 11, 3], [2, 12, 3], [2, 40, 41, 42, 43, 3]], 1e-6, 32
    seeds = range(300 if outputs == 3 else 1)
    last, rows = feed_forwards(model)[-1:], rows_of(*texts)
    found = sum(unit_importance(model, last, rows, pad_id=0, batch_size=2, seed=each)[0] for each in seeds)
    wanted = torch.zeros(neurons, dtype=torch.double)
    down = last[0].reader
    for text in texts:
        ids, mask = torch.tensor([text]), torch.ones(1, len(text))
        with torch.inference_mode():
            whole = model(input_ids=ids, attention_mask=mask).logits[0]
            for neuron in range(neurons):
                kept = down.weight[:, neuron].clone()
                down.weight[:, neuron] *= 1 - little
                change = (whole - model(input_ids=ids, attention_mask=mask).logits[0]) / little
                down.weight[:, neuron] = kept
                if outputs == 2:
                    change = change[1:] - change[:1]
                elif kind.startswith("single"):
                    change = change - change.mean()
                # The mean of |z . change| over normal z; of one number there is no z.
                wanted[neuron] += change.norm() * (1 if outputs < 3 else (2 / torch.pi) ** 0.5)
    assert wanted.max() > 0.01
    close = 0.25 if outputs == 3 else 1e-3
    assert np.asarray(found) / len(seeds) == pytest.approx(wanted.numpy(), rel=close, abs=1e-5)


def test_importance_is_a_sum_over_at_most_512_rows_from_anywhere(tmp_path: Path) -> None:
    """Catches the last batch in place of all, and the first rows of a sorted file."""
    model, _ = build("bert", tmp_path, outputs=1)
    same, other = [2, 10, 11, 3], [2, 60, 61, 62, 3]
    one, two = (unit_importance(model, feed_forwards(model), rows_of(text), pad_id=0)[0] for text in (same, other))
    some = unit_importance(model, feed_forwards(model), rows_of(*[same] * 40, *[other] * 30), pad_id=0)[0]
    assert torch.allclose(some, 40 * one + 30 * two, rtol=1e-4)
    many = unit_importance(model, feed_forwards(model), rows_of(*[same] * 600, *[other] * 600), pad_id=0)[0]
    shares = torch.linalg.lstsq(torch.stack([one, two], 1), many[:, None]).solution[:, 0]
    assert float(shares.sum()) == pytest.approx(512, abs=0.1)
    assert 200 < float(shares[0]) < 312


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_importance_is_the_same_where_a_model_goes_through_its_tokens_in_parts(chunk: int, tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path)
    texts = [2, 10, 11, 3], [2, 12, 13, 3]
    wanted = unit_importance(model, feed_forwards(model), rows_of(*texts), pad_id=0)
    for layer in model.bert.encoder.layer:
        layer.chunk_size_feed_forward = chunk
    found = unit_importance(model, feed_forwards(model), rows_of(*texts), pad_id=0)
    assert all(torch.allclose(mine, its, atol=1e-5) for mine, its in zip(found, wanted, strict=True))
    assert all(weight.requires_grad for weight in model.parameters())


CONFIG = BertConfig(num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12)


@pytest.mark.parametrize(
    ("spec", "total", "expected"),
    [
        ("layers:first-half", 6, (0, 1, 2)),
        ("layers:every-second", 6, (1, 3, 5)),
        ("layers:0,2", 4, (0, 2)),
        ("layers:first-half", 1, (0,)),
        ("layers:every-second", 1, (0,)),
        ("layers:first-and-last", 6, (0, 1, 5)),
        ("layers:first-and-last", 12, (0, 1, 2, 3, 4, 11)),
        ("layers:first-and-last", 2, (1,)),
        ("layers:first-and-last", 1, (0,)),
    ],
)
def test_layers_are_named_as_numbers_or_by_rule(spec: str, total: int, expected: tuple[int, ...]) -> None:
    config = BertConfig(num_hidden_layers=total)
    assert parse_cut(spec, config) == Cut(expected)
    assert parse_cut(f"{spec},ffn=7", config) == Cut(expected, 7)
    assert parse_cut(f"{spec},heads=6", config) == Cut(expected, heads=6)
    assert parse_cut(f"{spec}, heads=6, ffn=7", config) == Cut(expected, 7, 6)
    for each in (Cut(expected), Cut(expected, 7), Cut(expected, heads=6), Cut(expected, 7, 6)):
        assert parse_cut(str(each), config) == each
    assert parse_cut(f"{spec},heads={config.num_attention_heads}", config) == Cut(expected)
    assert parse_cut(f"{spec},ffn={config.intermediate_size}", config) == Cut(expected)  # it is narrower by nothing


@pytest.mark.parametrize("spec", ["layers:6", "layers:", "layers:a", "layers:1,1", "layers:-1", "layers:,ffn=7"])
def test_layers_that_are_not_there_are_wrong_input(spec: str) -> None:
    with pytest.raises(InputError, match="no such layers in a model with 6"):
        parse_cut(spec, CONFIG)


@pytest.mark.parametrize("width", ["0", "1537", "-1", "a", "", "1.5", "\uff17", "9999999999"])
def test_a_width_that_cannot_be_is_wrong_input(width: str) -> None:
    with pytest.raises(InputError, match=r"ffn= comes once, after .* 1536"):
        parse_cut(f"layers:0,1,ffn={width}", CONFIG)
    with pytest.raises(InputError, match=r"heads= comes once, after .* 12"):
        parse_cut(f"layers:0,1,heads={width}", CONFIG)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("layers:0,ffn=7,ffn=8", "ffn= comes once"),
        ("layers:0,ffn=7,1", "ffn= comes once"),
        ("layers:ffn=7", "no such layers"),
        ("layers:0,ffn", "no such layers"),
        ("layers:heads=2", "no such layers"),
        ("layers:0,heads=2,1", "heads= comes once"),
    ],
)
def test_a_width_stands_once_after_the_layers(spec: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_cut(spec, CONFIG)


def modernbert(folder: Path, layers: int = 4) -> Any:
    """Every third layer sees all tokens, the others two on either side."""
    from transformers import ModernBertConfig

    sizes: Any = {"num_hidden_layers": layers, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = ModernBertConfig(vocab_size=50, pad_token_id=0, local_attention=4, initializer_range=0.6, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("layers", ["0,1", "0,1,3", "0,2,3"])
def test_a_layer_keeps_its_kind_of_attention_or_is_not_cut(layers: str, tmp_path: Path) -> None:
    """Catches a last layer that turns from all tokens to a window when the student is opened again, and one that is
    refused though the config can say it."""
    whole = modernbert(tmp_path / "whole")
    if not hasattr(whole.config, "layer_types") and layers != "0,1":  # transformers 4.57
        with pytest.raises(InputError, match="depends on its position"):
            check_cut(f"layers:{layers}", str(tmp_path / "whole"))
        return
    check_cut(f"layers:{layers}", str(tmp_path / "whole"))
    cut(whole, parse_cut(f"layers:{layers}", whole.config), first_units).save_pretrained(tmp_path / "small")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    ids = torch.arange(3, 40)[None]  # longer than all windows together
    # The oracle: the teacher's own layers, in turn.
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[int(layer)] for layer in layers.split(",")])
    with torch.inference_mode():
        assert torch.allclose(small(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("width", [24, 48])
def test_gated_neurons_are_refused_before_anything_is_trained(width: int, tmp_path: Path) -> None:
    """ModernBERT's first linear layer has two outputs for each neuron; with 48, its attention has one of as many."""
    from transformers import ModernBertConfig

    sizes: Any = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": width}
    ModernBertConfig(vocab_size=50, pad_token_id=0, **sizes).save_pretrained(tmp_path)
    check_cut("layers:0", str(tmp_path))
    with pytest.raises(InputError, match="the feed-forward parts of this teacher cannot be made narrower"):
        check_cut("layers:0,ffn=12", str(tmp_path))
    assert half_width(str(tmp_path)) == Cut(())


@pytest.mark.parametrize("kind", ["BigBirdConfig", "LongformerConfig"])
def test_layers_that_do_the_same_in_every_place_can_be_cut(kind: str, tmp_path: Path) -> None:
    """BigBird's layers draw by their number, Longformer's config lists a window for each of them."""
    sizes: Any = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 3}
    config = getattr(transformers, kind)(vocab_size=50, pad_token_id=0, attention_type="original_full", **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    check_cut("layers:0,2", str(tmp_path))


def test_layers_that_share_their_weights_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    from transformers import AlbertConfig

    sizes: Any = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "embedding_size": 8}
    AlbertConfig(vocab_size=50, num_hidden_layers=3, **sizes).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot find the encoder's layers"):
        check_cut("layers:0,1", str(tmp_path))
    assert not can_be_cut(str(tmp_path), Cut((0, 1)))


def test_a_plain_encoder_can_be_made_narrower(tmp_path: Path) -> None:
    tiny_runs.base_model("bert", tmp_path, intermediate_size=31)
    check_cut("layers:0, ffn=12", str(tmp_path))
    assert half_width(str(tmp_path)) == Cut((), ffn=15, heads=1)
