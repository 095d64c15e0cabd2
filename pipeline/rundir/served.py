"""The serving engine over an ONNX file of a run, so that what is measured is what will serve."""

from pathlib import Path

from kdc.artifact.manifest import Device, TokenizerInfo
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import TOKENIZER_INFO, TOKENIZER_JSON
from kdc.serving.engine.engine import Engine


def read_tokenizer_info(run: Run) -> TokenizerInfo:
    """How rows are cut and padded for the student, as stage `export` wrote it."""
    return TokenizerInfo.model_validate_json((run.folder("export") / TOKENIZER_INFO).read_text(encoding="utf-8"))


def open_engine(run: Run, onnx_file: Path, *, temperature: float = 1.0, device: Device = "cpu") -> Engine:
    """The serving engine over one ONNX file of the run.

    Args:
        run: the run, exported.
        onnx_file: the graph.
        temperature: by which logits are divided.
        device: where to answer.
    """
    return Engine.from_files(
        onnx_file,
        run.folder("export") / TOKENIZER_JSON,
        task=run.data().task.info(),
        tokenizer_info=read_tokenizer_info(run),
        temperature=temperature,
        device=device,
    )
