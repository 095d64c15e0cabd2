"""The artifact as a Hugging Face folder, and exported as a repository: other libraries open it, and answer as the
engine does, or refuse it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny_models
import tiny_runs
import torch
from bag_models import SINGLE, write_artifact
from conftest import Finished
from huggingface_hub import ModelCard
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import kdc
from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import Manifest, TokenizerInfo
from kdc.pipeline.models.cutting import Cut, cut
from kdc.pipeline.models.pooling import MeanPooledClassifier
from kdc.pipeline.models.units import first_units
from kdc.pipeline.packaging.hugging_face import add_hugging_face_files, card_metadata
from kdc.tools.export.export import export_artifact

ROWS = [("w1 w5", "w7 w8 w9"), ("w2", "w3"), ("w1 " * 90, "w4 w5 " * 70)]  # the last one is cut


def of_kdc(artifact: Path, variant: Any) -> NDArray[np.float32]:
    with kdc.load(artifact, device="cpu", variant=variant, threads=1) as engine:
        return engine.predict(ROWS)


@pytest.fixture(params=["artifact", "repository"])
def folder(request: pytest.FixtureRequest, finished: Finished, tmp_path: Path) -> Path:
    if request.param == "artifact":
        return finished.artifact
    return Path(export_artifact(finished.artifact, str(tmp_path / "made"), form="hub").place)


def elsewhere(folder: Path, model: Any) -> NDArray[np.float32]:
    """Probabilities by a model and tokenizer of another library, by a plain softmax."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    feeds = tokenizer([list(row) for row in ROWS], truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = torch.as_tensor(model(**feeds).logits)
    return torch.softmax(logits, dim=1).numpy()


def test_transformers_answers_as_the_engine_does(finished: Finished, folder: Path) -> None:
    """Would catch weights of another stage, a tokenizer that cuts elsewhere, and labels in another order."""
    manifest = load_manifest(finished.artifact)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    answers = elsewhere(folder, model)
    np.testing.assert_allclose(answers, of_kdc(finished.artifact, "fp32"), atol=1e-5)
    assert tuple(model.config.id2label.values()) == manifest.task.labels


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_optimum_answers_as_the_engine_does(variant: str, finished: Finished, folder: Path) -> None:
    """Would catch a config that Optimum does not read, and file names that it does not find."""
    optimum = pytest.importorskip("optimum.onnxruntime", reason="Optimum is an extra")
    manifest = load_manifest(finished.artifact)
    # A repository needs no name of the file for fp32.
    named = {"file_name": "model_int8.onnx"} if variant == "int8" else {}
    if folder == finished.artifact:
        named = {"file_name": manifest.variants[variant].file}  # type: ignore[index]
    model = optimum.ORTModelForSequenceClassification.from_pretrained(folder, **named)
    answers = elsewhere(folder, model)
    np.testing.assert_allclose(answers, of_kdc(finished.artifact, variant), atol=1e-5)


def test_the_files_say_nothing_of_the_machine(finished: Finished) -> None:
    """Would catch the paths from which transformers read the model, which its configs keep."""
    for name in ("config.json", "tokenizer_config.json", "README.md"):
        text = (finished.artifact / name).read_text(encoding="utf-8")
        assert str(finished.folder) not in text
        assert "/tmp" not in text


def with_the_mean(config: Any) -> Any:
    config.kdc_pooling = "mean"
    return MeanPooledClassifier(config)


def with_one_head(config: Any) -> Any:
    return cut(AutoModelForSequenceClassification.from_config(config), Cut((0,), heads=1), first_units)


def with_one_head_and_the_mean(config: Any) -> Any:
    return cut(with_the_mean(config), Cut((0,), heads=1), first_units)


MODULES = ["encoder.safetensors", "head.safetensors"]


@pytest.mark.parametrize(
    ("make", "modules"), [(with_the_mean, MODULES), (with_one_head, []), (with_one_head_and_the_mean, [])]
)
def test_what_no_class_of_transformers_has_is_refused_and_not_drawn_at_random(
    make: Any, modules: list[str], tmp_path: Path
) -> None:
    """Would catch weights under a config of plain BERT, which `AutoModel...` takes and completes at random, and modules
    of an encoder that no library has."""
    tiny_runs.base_model("bert", tmp_path / "base")
    make(AutoConfig.from_pretrained(tmp_path / "base", num_labels=2)).save_pretrained(tmp_path / "model")
    tiny_models.build_tokenizer(0).save_pretrained(tmp_path / "model")
    (tmp_path / "artifact").mkdir()
    info = TokenizerInfo(max_length=32, pad_id=0, pad_token="[PAD]", token_type_ids=True)
    add_hugging_face_files(tmp_path / "model", tmp_path / "artifact", info)
    files = sorted(path.name for path in (tmp_path / "artifact").iterdir())
    assert files == ["config.json", *modules, "tokenizer_config.json"]
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "artifact")


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def of_the_mean(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, Any]:
    """A repository of a student that reads the mean, that model, and its tokenizer. Its ONNX files are another's."""
    tiny_runs.base_model(request.param, tmp_path / "base")
    config = AutoConfig.from_pretrained(tmp_path / "base", num_labels=3, initializer_range=tiny_models.SPREAD)
    model = with_the_mean(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "model")
    info = TokenizerInfo(
        max_length=32,
        pad_id=tokenizer.pad_token_id,
        pad_token="[PAD]",
        token_type_ids="token_type_ids" in tokenizer.model_input_names,
    )
    file = tmp_path / "model" / "tokenizer.json"
    artifact = write_artifact(tmp_path / "artifact", SINGLE, info, tokenizer=file, temperature=1.7)
    add_hugging_face_files(tmp_path / "model", artifact, info)
    (artifact / "README.md").write_text("# mood\n")
    names = [path.name for path in artifact.iterdir() if path.name != "manifest.json"]
    manifest = load_manifest(artifact).model_copy(update={"files": describe_files(artifact, names)})
    write_manifest(artifact, manifest)
    return Path(export_artifact(artifact, str(tmp_path / "made"), form="hub").place), model, tokenizer


@pytest.mark.parametrize(
    "own",
    [
        {"architectures": ["MeanPooledClassifier"]},
        {"architectures": ["BertForSequenceClassification"], "kdc_heads": 1},
        {"architectures": ["ShallowClassifier"], "kdc_shallow": {"width": 8}},
    ],
    ids=["mean", "heads", "shallow"],
)
def test_optimum_opens_what_transformers_refuses(own: Any, of_the_mean: tuple[Path, Any, Any]) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime", reason="Optimum is an extra")
    made, _, _ = of_the_mean
    config = json.loads((made / "config.json").read_text()) | own
    (made / "config.json").write_text(json.dumps(config))
    model = optimum.ORTModelForSequenceClassification.from_pretrained(made)
    feeds = AutoTokenizer.from_pretrained(made)(["w1 w2", "w3"], padding=True, return_tensors="pt")
    with kdc.load(made.parent / "artifact", device="cpu", variant="fp32", threads=1) as engine:
        np.testing.assert_allclose(model(**feeds).logits, engine.logits(["w1 w2", "w3"]), atol=1e-5)


TEXTS = ["w1 w5 w7", "w2", "w3 w4 " * 90]  # the last one is cut


def logits_of(model: Any, tokenizer: Any, rows: Any) -> NDArray[np.float32]:
    feeds = tokenizer(rows, truncation=True, max_length=32, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return np.asarray(model(**feeds).logits)


def test_encoder_and_head_are_those_of_the_student(of_the_mean: tuple[Path, Any, Any]) -> None:
    """By transformers and numpy. Would catch weights under other names, which are then drawn at random."""
    made, model, tokenizer = of_the_mean
    encoder = AutoModel.from_pretrained(made / "0_Transformer").eval()
    own = AutoTokenizer.from_pretrained(made / "0_Transformer")
    feeds = own(TEXTS, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = encoder(**feeds).last_hidden_state.numpy()
    mask = feeds["attention_mask"].numpy()[..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    linear = safetensors.numpy.load_file(made / "2_Dense" / "model.safetensors")
    logits = mean @ linear["linear.weight"].T + linear["linear.bias"]
    np.testing.assert_allclose(logits, logits_of(model, tokenizer, TEXTS), atol=1e-5)


def test_sentence_transformers_gives_the_logits(of_the_mean: tuple[Path, Any, Any]) -> None:
    reason = "needs sentence-transformers"
    sentence_transformers = pytest.importorskip("sentence_transformers", reason=reason)
    made, model, tokenizer = of_the_mean
    opened = sentence_transformers.SentenceTransformer(str(made), device="cpu")
    np.testing.assert_allclose(opened.encode(TEXTS), logits_of(model, tokenizer, TEXTS), atol=1e-5)
    pairs = logits_of(model, tokenizer, [list(row) for row in ROWS])
    np.testing.assert_allclose(opened.encode(ROWS), pairs, atol=1e-5)
    assert "SentenceTransformer(FOLDER).encode(texts)" in (made / "README.md").read_text(encoding="utf-8")
    assert "softmax(logits / 1.7)" in (made / "README.md").read_text(encoding="utf-8")


def test_the_tokenizers_settings_are_those_that_both_versions_of_transformers_read(tmp_path: Path) -> None:
    """5 saves a list of further tokens that 4.57 cannot read, and 4 tokens with how they are matched. Would catch paths
    too, and token types for a model that takes none, which the tokenizer's class makes unless it is told."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "kdc_pooling": "mean", "kdc_heads": 1}))
    saved = {
        "tokenizer_class": "TokenizersBackend",
        "is_local": True,
        "name_or_path": "/home/me/model",
        "max_length": 8,
        "extra_special_tokens": ["<q>"],
        "cls_token": "[CLS]",
        "sep_token": {"content": "[SEP]", "lstrip": False},
        "mask_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved))
    info = TokenizerInfo(max_length=48, pad_id=0, pad_token="[PAD]", token_type_ids=False, truncation_side="left")
    (tmp_path / "artifact").mkdir()
    add_hugging_face_files(tmp_path, tmp_path / "artifact", info)
    assert json.loads((tmp_path / "artifact" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 48,
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "padding_side": "right",
        "truncation_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def test_transformers_makes_the_tokens_of_the_engine(finished: Finished) -> None:
    """Would catch a tokenizer that is built by an architecture's rules in place of its file."""
    tokenizer = AutoTokenizer.from_pretrained(finished.artifact)
    made = tokenizer([list(row) for row in ROWS], truncation=True)
    with kdc.load(finished.artifact, device="cpu", threads=1) as engine:
        encodings = engine.encode(ROWS)
        assert sorted(made) == sorted(engine.tokenizer_info.input_names)
    assert made["input_ids"] == [encoding.ids for encoding in encodings]
    assert made["token_type_ids"] == [encoding.type_ids for encoding in encodings]


def test_the_hub_reads_the_card(finished: Finished) -> None:
    """By the hub's own reader. Would catch a metric in points where the hub has shares."""
    manifest = load_manifest(finished.artifact)
    card = ModelCard.load(finished.artifact / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "transformers")
    assert card.data.base_model is None  # the teacher is a folder of this machine
    assert card.data.datasets is None
    assert manifest.providers["CPUExecutionProvider"] == "int8"
    told = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert told == {
        f"{name} (int8)": pytest.approx(points / 100, abs=1e-6)
        for name, points in manifest.variants["int8"].metrics.items()
    }
    assert "AutoModelForSequenceClassification.from_pretrained(FOLDER)" in card.text


def test_models_and_rows_of_the_hub_are_named(finished: Finished, tmp_path: Path) -> None:
    manifest: Manifest = load_manifest(finished.artifact)
    head = card_metadata(manifest, models=["owner/model"], dataset=("nyu-mll/glue", "qnli", "validation"))
    (tmp_path / "README.md").write_text(head + "# text\n")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.datasets) == (["owner/model"], ["nyu-mll/glue"])
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "qnli", "validation")


def test_every_file_is_in_the_manifest(finished: Finished) -> None:
    """Would catch files beside the manifest, which no hash covers and no push sends."""
    names = sorted(path.name for path in finished.artifact.iterdir() if path.name != "manifest.json")
    assert load_manifest(finished.artifact).files == describe_files(finished.artifact, names)


def test_an_older_runtime_loads_the_graphs(finished: Finished) -> None:
    """ONNX Runtime 1.17 reads format 9 with operators 20, by its table of compatibility."""
    for variant in load_manifest(finished.artifact).variants.values():
        assert variant.opset is not None
        assert variant.ir is not None
        assert variant.opset <= 20
        assert variant.ir <= 9
