"""docs/how-to/other-runtimes.md: its code for plain ONNX Runtime answers as kdc's engine does."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_models import INFO, PAIR, SINGLE, TYPED, write_artifact
from live import ROOT

import kdc
from kdc.artifact.manifest import TaskInfo

PAGE = (ROOT / "docs" / "how-to" / "other-runtimes.md").read_text(encoding="utf-8")
SEVERAL = TaskInfo(name="topics", kind="multilabel", labels=("x", "y", "z"))
PRICES = TaskInfo(name="prices", kind="regression", center=1234.5, spread=98.7)


@pytest.mark.parametrize("task", [SINGLE, PAIR, SEVERAL, PRICES], ids=lambda task: task.name)
def test_the_code_answers_as_the_engine(task: TaskInfo, tmp_path: Path) -> None:
    """Would catch another temperature, an activation of another kind, and tokens that are cut or padded otherwise."""
    info = TYPED if task.is_pair else INFO
    folder = write_artifact(tmp_path / "artifact", task, info, outputs=task.outputs)
    first, second = "w1 w2 w3 w4 w5 w6 w7 w8 w9", "w10 w11"
    texts: list[Any] = [(first, second), (second, second)] if task.is_pair else [first, second]
    (code,) = re.findall(r"```python\n(import json.*?)```", PAGE, re.DOTALL)
    for name, value in {"FOLDER": str(folder), "texts": texts}.items():
        code, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
        assert count == 1
    answered: dict[str, Any] = {}
    exec(code, answered)
    with kdc.load(folder, device="cpu", threads=1) as engine:
        np.testing.assert_allclose(answered["answers"], engine.predict(texts), rtol=1e-5, atol=1e-6)
