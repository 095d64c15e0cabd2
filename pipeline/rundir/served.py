"""The serving engine over an ONNX file of a run, so that what is measured is what will serve."""

from __future__ import annotations

import json
from pathlib import Path

from kdc.artifact.manifest import Device, TokenizerInfo
from kdc.pipeline.data.served import task_info
from kdc.pipeline.rundir.context import Run
from kdc.serving.engine.engine import Engine

TOKENIZER_INFO = "tokenizer_info.json"


def open_engine(run: Run, onnx_file: Path, *, temperature: float = 1.0, device: Device = "cpu") -> Engine:
    """The serving engine over one ONNX file of the run, so that what is measured is what will serve."""
    export = run.folder("export")
    info = TokenizerInfo.model_validate(json.loads((export / TOKENIZER_INFO).read_text(encoding="utf-8")))
    return Engine.from_files(
        onnx_file,
        export / "tokenizer.json",
        task=task_info(run.data().task),
        tokenizer_info=info,
        temperature=temperature,
        device=device,
    )
