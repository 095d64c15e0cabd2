"""`kdc export --to hub`: other libraries open the folder with no option, and `kdc pull` gets the artifact back."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_models import PAIR, SINGLE, TYPED, write_artifact, write_hub_artifact
from conftest import Finished
from huggingface_hub import ModelCard
from live import ROOT
from tokenizers import Tokenizer, models
from transfers import contents

import kdc
from kdc.artifact.folder import load_manifest, write_manifest
from kdc.artifact.manifest import TaskInfo
from kdc.artifact.stores.transfer import pull_artifact, push_artifact
from kdc.common.errors import InputError, KdcError
from kdc.tools.export.export import export_artifact

SEVERAL = TaskInfo(name="topics", kind="multilabel", labels=("x", "y", "z"))
NODE_MODULES = ROOT / "build" / "js" / "node_modules"
needs_transformers_js = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE_MODULES / "@huggingface" / "transformers").exists(),
    reason="needs node and transformers.js: make build/js",
)
# Answers each text with all labels and their scores.
PIPELINE = """
import { readFileSync } from "node:fs";
import { pipeline } from "@huggingface/transformers";
const [folder, texts] = JSON.parse(readFileSync(0));
const classify = await pipeline("text-classification", folder);
console.log(JSON.stringify(await classify(texts, { top_k: null })));
"""
PAIRS = """
import { readFileSync } from "node:fs";
import { AutoModelForSequenceClassification, AutoTokenizer } from "@huggingface/transformers";
const [folder, rows] = JSON.parse(readFileSync(0));
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModelForSequenceClassification.from_pretrained(folder);
const options = { truncation: true, padding: true, return_token_type_ids: true };
const inputs = tokenizer(rows.map((row) => row[0]), { text_pair: rows.map((row) => row[1]), ...options });
console.log(JSON.stringify((await model(inputs)).logits.tolist()));
"""


def export(artifact: Path, folder: Path, **how: Any) -> Path:
    return Path(export_artifact(artifact, str(folder), form="hub", **how).place)


def in_node(script: str, folder: Path, rows: Any, scratch: Path) -> Any:
    (scratch / "script.mjs").write_text(script, encoding="utf-8")
    (scratch / "node_modules").symlink_to(NODE_MODULES)
    asked = json.dumps([str(folder), rows])
    done = subprocess.run(
        ["node", "script.mjs"], cwd=scratch, input=asked, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_transformers_js
@pytest.mark.parametrize(
    ("task", "own"),
    [
        (SINGLE, {"architectures": ["BertForSequenceClassification"]}),
        (SEVERAL, {"architectures": ["MeanPooledClassifier"], "kdc_pooling": "mean"}),
        (SINGLE, {"architectures": ["BertForSequenceClassification"], "kdc_heads": 1}),
        (SINGLE, {"architectures": ["ShallowClassifier"], "kdc_shallow": {"width": 8}}),
    ],
    ids=["first-token", "mean", "heads", "shallow"],
)
def test_the_pipeline_of_transformers_js_answers_as_the_engine(task: TaskInfo, own: Any, tmp_path: Path) -> None:
    """Would catch a file that the pipeline does not find, another variant's graph, and other labels."""
    artifact = write_hub_artifact(tmp_path / "artifact", task, own=own, temperature=1.0)
    texts = ["w1 w2", "w3 w4 w5 w6"]  # of longer ones transformers.js also cuts off the last [SEP]
    answers = in_node(PIPELINE, export(artifact, tmp_path / "made"), texts, tmp_path)
    with kdc.load(artifact, device="cpu", threads=1) as engine:
        expected = engine.predict(texts)
    for answer, row in zip(answers, expected, strict=True):
        scores = {each["label"]: each["score"] for each in answer}
        assert [scores[label] for label in task.labels] == pytest.approx(row.tolist(), abs=1e-5)


@needs_transformers_js
def test_transformers_js_takes_pairs(tmp_path: Path) -> None:
    artifact = write_hub_artifact(tmp_path / "artifact", PAIR, TYPED, temperature=1.0)
    rows = [("w1 w2", "w3"), ("w4", "w5 w6")]
    logits = in_node(PAIRS, export(artifact, tmp_path / "made"), rows, tmp_path)
    with kdc.load(artifact, device="cpu", threads=1) as engine:
        np.testing.assert_allclose(logits, engine.logits(rows), atol=1e-5)


def test_files_lie_where_others_look(finished: Finished, tmp_path: Path) -> None:
    made = export(finished.artifact, tmp_path / "made")
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "kdc/README.md",
        "kdc/config.json",
        "kdc/evaluation.npz",
        "kdc/manifest.json",
        "model.safetensors",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_int8.onnx",
        "onnx/model_quantized.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (made / "onnx" / "model_quantized.onnx").read_bytes() == (finished.artifact / "model_int8.onnx").read_bytes()


def test_the_graph_that_was_judged_is_the_default_of_transformers_js(finished: Finished, tmp_path: Path) -> None:
    made = export(finished.artifact, tmp_path / "made")
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    own = json.loads((finished.artifact / "config.json").read_text(encoding="utf-8"))
    assert config == own | {"transformers.js_config": {"dtype": "int8"}}
    manifest = load_manifest(finished.artifact)
    copy = shutil.copytree(finished.artifact, tmp_path / "copy")
    write_manifest(
        copy, manifest.model_copy(update={"providers": manifest.providers | {"CPUExecutionProvider": "fp32"}})
    )
    config = json.loads((export(copy, tmp_path / "fp32") / "config.json").read_text(encoding="utf-8"))
    assert config["transformers.js_config"] == {"dtype": "fp32"}


def test_a_pull_gets_the_artifact_back(finished: Finished, tmp_path: Path) -> None:
    made = export(finished.artifact, tmp_path / "made")
    pulled = pull_artifact(str(made), tmp_path / "copy", expect_sha256=load_manifest(finished.artifact).sha256)
    assert pulled.changed
    assert contents(tmp_path / "copy") == contents(finished.artifact)


def test_an_engine_says_how_to_get_an_artifact(tmp_path: Path) -> None:
    made = export(write_hub_artifact(tmp_path / "artifact"), tmp_path / "made")
    with pytest.raises(InputError, match=f"kdc pull {made} artifact"):
        kdc.load(made)


@pytest.mark.parametrize("name", ["onnx/model_int8.onnx", "tokenizer.json", "kdc/README.md"])
def test_a_changed_file_of_the_repository_is_refused(name: str, finished: Finished, tmp_path: Path) -> None:
    made = export(finished.artifact, tmp_path / "made")
    content = bytearray((made / name).read_bytes())
    content[-1] ^= 1
    (made / name).write_bytes(content)
    with pytest.raises(KdcError, match="changed on the way"):
        pull_artifact(str(made), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_push_does_not_write_among_the_files_of_a_repository(finished: Finished, tmp_path: Path) -> None:
    made = export(finished.artifact, tmp_path / "made")
    with pytest.raises(InputError, match="something else is there"):
        push_artifact(finished.artifact, str(made))


def test_word_pieces_are_listed_by_their_ids(tmp_path: Path) -> None:
    """Would catch the order of the file, which is that of the alphabet in some libraries."""
    vocabulary = {"[UNK]": 1, "b": 2, "a": 3, "##a": 4, "[PAD]": 0}
    Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    made = export(write_hub_artifact(tmp_path / "artifact", tokenizer=tmp_path / "tokenizer.json"), tmp_path / "made")
    assert (made / "vocab.txt").read_text(encoding="utf-8").splitlines() == ["[PAD]", "[UNK]", "b", "a", "##a"]


def test_other_vocabularies_have_no_list(tmp_path: Path) -> None:
    """A list with a gap would shift all later ids."""
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 2}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    gap = write_hub_artifact(tmp_path / "gap", tokenizer=tmp_path / "tokenizer.json")
    for name, artifact in {"words": write_hub_artifact(tmp_path / "artifact"), "of-gap": gap}.items():
        assert not (export(artifact, tmp_path / name) / "vocab.txt").exists()


def test_the_card_says_how_this_layout_opens_and_what_to_try(tmp_path: Path) -> None:
    """By the hub's own reader."""
    made = export(
        write_hub_artifact(tmp_path / "artifact", temperature=1.7), tmp_path / "made", example=["I: like it", "no"]
    )
    card = ModelCard.load(made / "README.md")
    assert card.data.to_dict()["widget"] == [{"text": "I: like it"}, {"text": "no"}]
    assert card.data.pipeline_tag == "text-classification"
    assert "subfolder" not in card.text
    assert 'pipeline("text-classification", FOLDER)' in card.text
    assert "softmax(logits / 1.7)" in card.text
    assert "kdc pull FOLDER artifact" in card.text
    assert card.text.rstrip().endswith("## Limits\n\nFew.")


def test_the_card_of_a_run_keeps_its_measurements_and_loses_what_no_longer_holds(
    finished: Finished, tmp_path: Path
) -> None:
    """Would catch a card of `kdc compress` with words that the export does not find."""
    made = export(finished.artifact, tmp_path / "made")
    before, after = (ModelCard.load(folder / "README.md") for folder in (finished.artifact, made))
    assert before.data.eval_results
    assert after.data.eval_results == before.data.eval_results
    for outdated in ("kdc try . ", 'kdc.load(".")', "subfolder", "The folder is a Hugging Face model too"):
        assert outdated in before.text
        assert outdated not in after.text
    assert before.text.partition("## Limits")[2] == after.text.partition("## Limits")[2] != ""


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks config\.json or README\.md.*\n.*\n.*export\.formats=onnx,hf"):
        export(write_artifact(tmp_path / "plain"), tmp_path / "made")
    with pytest.raises(InputError, match="takes examples"):
        export(write_hub_artifact(tmp_path / "pair", PAIR, TYPED), tmp_path / "made", example=["a text"])
    assert not (tmp_path / "made").exists()
