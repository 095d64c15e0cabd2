"""The table of docs/reference/architectures.md: each row is run, from a tiny model of random weights to an artifact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
import transformers
from tiny_models import ARCHITECTURES, GATED, OTHERS, build_tokenizer

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import TaskInfo, TokenizerInfo
from kdc.common.errors import InputError
from kdc.pipeline.graphs.onnx_graph import export_onnx
from kdc.pipeline.models.possible_cuts import half_width
from kdc.serving.engine.engine import Engine

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
# Quantising is judged elsewhere: here there has to be such a graph.
SETS = ("quantize.max_int8_drop=100", "student.allow_majority=true", "teacher.pooling=first")


def rows() -> list[tuple[str, str, str, str]]:
    """Of each architecture what the table says of students, and of those with fewer neurons and heads."""
    lines = [line.strip("| \n").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines() if "|" in line]
    return [(name, student, neurons, heads) for name, _, student, neurons, heads in lines[2:]]


def newest(name: str) -> Any:
    """Transformers 4.57 lacks some, and exports others by other means."""
    is_there = transformers.__version__.startswith("5.")
    return pytest.param(name, marks=pytest.mark.skipif(not is_there, reason="the table is of transformers 5"))


def run(folder: Path, student: str, *sets: str, until: str | None = None) -> Any:
    tiny_runs.write_rows(folder / "train.csv", 500, seed=1)
    tiny_runs.write_rows(folder / "eval.csv", 60, seed=2)
    flags = {"student.model": student}
    config = tiny_runs.config_for(folder, folder / "teacher", *SETS, *sets, flags=flags)
    return tiny_runs.compress(config, until=until)


def assert_made(folder: Path) -> None:
    manifest = load_manifest(folder / "run" / "artifact")
    assert set(manifest.variants) == {"fp32", "int8", "fp16"}
    with Engine.load(folder / "run" / "artifact", device="cpu", threads=1) as engine:
        assert np.isfinite(engine.predict([("w1 w7", "w9")])).all()


def assert_refused_early(folder: Path, student: str) -> None:
    with pytest.raises(InputError) as refused:
        run(folder, student)
    assert refused.value.remedy
    assert not (folder / "run" / "teacher").exists()


def test_the_table_has_all_that_is_tried() -> None:
    assert sorted(name for name, *_ in rows()) == sorted(ARCHITECTURES | GATED | OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [newest(name) for name, *_ in rows()])
def test_a_row_of_the_table(architecture: str, tmp_path: Path) -> None:
    """Would catch an architecture that fails after its training, or that the table promises in vain."""
    (_, student, neurons, heads) = next(row for row in rows() if row[0] == architecture)
    teacher = tiny_runs.base_model(architecture, tmp_path / "teacher")
    if not student.startswith("no: "):
        half = half_width(str(teacher))
        assert (half.ffn is not None, half.heads is not None) == (neurons == "yes", heads == "yes")
    if student == "yes":
        run(tmp_path, "layers:first-half")
    elif student.startswith("with `--set "):
        model = str(teacher) if "a checkpoint" in student else "layers:first-half"
        assert_refused_early(tmp_path, model)
        assert_refused_early(tmp_path, "layers:0")
        run(tmp_path, model, student.partition("--set ")[2].partition("`")[0])
    else:
        assert student.startswith("no: ")
        for model in ("layers:0", "teacher", str(teacher)):
            assert_refused_early(tmp_path, model)
        run(tmp_path, "conv")
    assert_made(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("length", [512, 8192])
def test_long_texts_are_answered_as_the_model_does(length: int, tmp_path: Path) -> None:
    """Would catch positions or windows of attention that the export fixed at the length of its example."""
    torch.manual_seed(0)
    name, settings, pad_id = GATED["modernbert"]
    config = getattr(transformers, name)(
        **(settings | {"num_hidden_layers": 2, "num_attention_heads": 1, "attn_implementation": "eager"}),
        vocab_size=100,
        max_position_embeddings=8192,
        pad_token_id=pad_id,
        num_labels=3,
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    build_tokenizer(pad_id, typed=False).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    export_onnx(tmp_path, tmp_path / "model.onnx", token_type_ids=False)
    words = np.random.default_rng(0).integers(1, 80, size=2 * length)
    engine = Engine.from_files(
        tmp_path / "model.onnx",
        tmp_path / "tokenizer.json",
        task=TaskInfo(name="t", kind="classification", labels=("a", "b", "c")),
        tokenizer_info=TokenizerInfo(max_length=length, pad_id=pad_id, pad_token="[PAD]", token_type_ids=False),
        threads=1,
    )
    (encoding,) = engine.encode([" ".join(f"w{word}" for word in words)])
    assert len(encoding) == length
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([encoding.ids])).logits.numpy()
    np.testing.assert_allclose(engine.run([encoding]), expected, atol=1e-4)
