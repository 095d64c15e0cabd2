"""A classifier that reads the mean of the token vectors: what it computes, when it is taken, and that it survives every
step that any other classifier goes through."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_runs
import torch
from tiny_models import ARCHITECTURES, build
from transformers import AutoModel, AutoModelForSequenceClassification

from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.config.training_settings import LoraSettings
from kdc.pipeline.graphs.onnx_graph import export_onnx
from kdc.pipeline.models import cutting, loading, units
from kdc.pipeline.models.pooling import MeanPooledClassifier, Pooling
from kdc.pipeline.training import adapters

TASK = custom_task("toy", "first", "second", "label", "classification", ("a", "b", "c"))
IDS = torch.tensor([[2, 10, 11, 3], [2, 12, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def mean_pooled(architecture: str, folder: Path) -> Any:
    """A classifier over a tiny encoder, with a head whose logits are not near zero."""
    tiny_runs.base_model(architecture, folder)
    model = loading.load_model(str(folder), TASK, pooling="mean").model.eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_head_reads_the_mean_of_the_tokens_without_the_padding(architecture: str, tmp_path: Path) -> None:
    model = mean_pooled(architecture, tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        rows = [encoder(input_ids=IDS[:1]), encoder(input_ids=IDS[1:, :3])]  # each row alone, not padded
        means = torch.cat([row.last_hidden_state.mean(1) for row in rows])
        expected = means @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(logits_of(model), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_only_the_head_is_new_and_nothing_once_it_is_saved(architecture: str, tmp_path: Path) -> None:
    model = mean_pooled(architecture, tmp_path / "encoder")
    assert loading.load_model(str(tmp_path / "encoder"), TASK, pooling="mean").new_modules == ("classifier",)
    model.save_pretrained(tmp_path / "saved")
    again = loading.load_model(str(tmp_path / "saved"), TASK)
    assert again.new_modules == ()
    assert torch.equal(logits_of(again.model.eval()), logits_of(model))
    assert torch.equal(logits_of(loading.load_plain(tmp_path / "saved")), logits_of(model))


@pytest.mark.parametrize(
    ("note", "pooling", "reads_mean"),
    [
        (None, "auto", False),
        ({"pooling_mode_mean_tokens": True}, "auto", True),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "auto", False),
        ({"pooling_mode_mean_tokens": True}, "first", False),
        (None, "mean", True),
    ],
)
def test_a_checkpoint_is_read_as_it_was_made_to_be_unless_the_settings_say_so(
    note: dict[str, bool] | None, pooling: Pooling, reads_mean: bool, tmp_path: Path
) -> None:
    tiny_runs.base_model("bert", tmp_path)
    if note is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(note))
    model = loading.load_model(str(tmp_path), TASK, pooling=pooling).model
    assert isinstance(model, MeanPooledClassifier) is reads_mean


def test_what_a_checkpoint_was_made_for_is_a_part_of_its_fingerprint(tmp_path: Path) -> None:
    tiny_runs.base_model("bert", tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    prints = set()
    for mean in (True, False):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": mean}))
        prints.add(loading.fingerprint(str(tmp_path)))
    assert len(prints) == 2


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_it_is_cut_adapted_merged_and_saved_like_any_other(architecture: str, tmp_path: Path) -> None:
    wanted = cutting.Cut((1,), heads=None if architecture == "mpnet" else 1)
    small = cutting.cut(mean_pooled(architecture, tmp_path / "encoder"), wanted, units.first_units)
    adapted = adapters.with_adapters(small, (), LoraSettings(r=2, alpha=4, dropout=0, init="gaussian"))
    for weight in adapted.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    expected = logits_of(adapted.eval())
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    again = loading.load_plain(tmp_path / "merged")
    assert len(units.encoder_layers(again)[1]) == 1
    assert torch.allclose(logits_of(again), expected, atol=1e-4)


def test_an_encoder_with_fewer_heads_is_read_by_the_mean(tmp_path: Path) -> None:
    """Would catch attention that is drawn at random, since its weights have another shape than the config's own."""
    whole, _ = build("bert", tmp_path / "whole")
    small: Any = cutting.cut(whole, cutting.Cut((0, 1), heads=1), units.first_units)
    small.save_pretrained(tmp_path / "small")
    loaded = loading.load_model(str(tmp_path / "small"), TASK, pooling="mean")
    assert loaded.new_modules == ("classifier",)
    found, wanted = (dict(model.named_parameters()) for model in (loaded.model.encoder, small.bert))
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.items())


def test_an_encoder_whose_weights_have_another_shape_is_refused(tmp_path: Path) -> None:
    build("bert", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 24}))
    with pytest.raises(KdcError, match="lacks weights of the encoder"):
        loading.load_model(str(tmp_path), TASK, pooling="mean")


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_head_on_the_first_token_keeps_the_encoder_and_opens_by_transformers(
    architecture: str, tmp_path: Path
) -> None:
    mean = mean_pooled(architecture, tmp_path / "encoder")
    loaded = loading.reading_the_first_token(mean)
    loaded.model.eval().save_pretrained(tmp_path / "first")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    assert torch.equal(logits_of(opened), logits_of(loaded.model))
    kept = {name: value for name, value in opened.base_model.state_dict().items() if not name.startswith("pooler.")}
    assert kept.keys() == mean.encoder.state_dict().keys()
    assert all(torch.equal(value, kept[name]) for name, value in mean.encoder.state_dict().items())
    new = {name.split(".")[0] for name, _ in opened.named_parameters()} - {opened.base_model_prefix}
    assert new <= set(loaded.new_modules) <= new | {"pooler"}


@pytest.mark.parametrize("exporter", ["optimum", "torch"])
def test_its_graph_answers_as_it_does(exporter: Any, tmp_path: Path) -> None:
    if exporter == "optimum":
        pytest.importorskip("optimum.exporters.onnx")
    model = mean_pooled("bert", tmp_path / "encoder")
    model.save_pretrained(tmp_path / "saved")
    export_onnx(tmp_path / "saved", tmp_path / "model.onnx", exporter=exporter)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy(), "token_type_ids": np.zeros_like(IDS.numpy())}
    assert np.allclose(session.run(["logits"], feeds)[0], logits_of(model).numpy(), atol=1e-4)
