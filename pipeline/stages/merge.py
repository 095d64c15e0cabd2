"""Stage `merge`: adapters into the weights, in fp32, and the proof that nothing was lost.

Reads `data/`, `student/`. Writes `model/` (save_pretrained, with its tokenizer).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from kdc.common.errors import KdcError
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.stages.student import probe_rows
from kdc.pipeline.training import models
from kdc.pipeline.training.predict import predict


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make `out/model`, the student as one plain model."""
    student = run.folder("student")
    tokenizer = models.load_tokenizer(str(student / "base"))
    rows = probe_rows(run, run.student.model)
    untrained = predict(_plain(student / "base"), rows, pad_id=tokenizer.pad_token_id)
    adapted = load_student(student)
    expected = np.load(student / "trained_logits.npy")  # of the model in memory, right after its training
    merged = adapted.merge_and_unload(safe_merge=True) if (student / "adapter").exists() else adapted
    merged.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    merged_logits = predict(_plain(out / "model"), rows, pad_id=tokenizer.pad_token_id)
    return check_merge(untrained, expected, merged_logits)


def load_student(folder: Path) -> Any:
    """The trained student as stage `student` left it: base and adapter, or all weights."""
    if (folder / "full").exists():
        return _plain(folder / "full")
    from peft import PeftModel

    below = folder / "below"  # only where the adapters' initialisation changed the weights
    base = _plain(below if below.exists() else folder / "base")
    return PeftModel.from_pretrained(base, str(folder / "adapter")).eval()


def check_merge(
    untrained: NDArray[np.float32], adapted: NDArray[np.float32], merged: NDArray[np.float32]
) -> dict[str, float]:
    """Merged logits equal the adapter's and differ from the student before training.

    Args:
        untrained: (rows, outputs) of the student before training.
        adapted: (rows, outputs) with adapters.
        merged: (rows, outputs) of the merged model, reloaded from disk.

    Returns:
        max_difference and the tolerance: 1e-5 x max(1, largest |logit|).

    Raises:
        KdcError: they do not.
    """
    tolerance = 1e-5 * max(1.0, float(np.abs(adapted).max()))
    difference = float(np.abs(merged - adapted).max())
    learned = float(np.abs(merged - untrained).max())
    if not difference <= tolerance:
        raise KdcError(
            "the merged model answers otherwise than the adapters",
            given=f"{difference:.2e}, tolerance {tolerance:.2e}",
            remedy="run the stage again with --from student; if it stays, report the adapter settings",
        )
    if learned <= 100 * tolerance:
        raise KdcError(
            "the trained student answers as before training",
            given=f"largest difference {learned:.2e}",
            remedy="train longer or raise --set student.learning_rate",
        )
    return {"max_difference": difference, "tolerance": tolerance, "difference_from_untrained": learned}


def _plain(folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32).eval()
