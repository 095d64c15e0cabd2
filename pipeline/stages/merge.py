"""Stage `merge`: fold adapters or projection, and then the temperature, into the weights.

Reads `data/`, `student/`. Writes `model/` (save_pretrained, with tokenizer).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.pipeline.graphs.parity import check_equal
from kdc.pipeline.models import loading
from kdc.pipeline.results.training import MergeResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.training.predict import predict
from kdc.pipeline.training.students import TRAINED_LOGITS, merged_student, probe_rows
from kdc.pipeline.training.temperature import fold_temperature

_TOLERANCE = 1e-5  # of logits, see `check_equal`


def run(run: Run, out: Path) -> MergeResult:
    student = run.folder("student")
    tokenizer = loading.load_tokenizer(str(student / "base"))
    rows = probe_rows(run.data(), run.student_role)
    untrained = predict(loading.load_plain(student / "base"), rows, pad_id=tokenizer.pad_token_id)
    model = merged_student(student)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    merged = predict(loading.load_plain(out / "model"), rows, pad_id=tokenizer.pad_token_id)
    result = check_merge(untrained, np.load(student / TRAINED_LOGITS), merged, is_trained=not run.is_uncut)
    pad_id, device = tokenizer.pad_token_id, run.device
    temperature = fold_temperature(model, run.data(), run.student_role, pad_id=pad_id, device=device)
    model.save_pretrained(out / "model")
    return result.model_copy(update={"temperature": temperature})


def check_merge(
    untrained: NDArray[np.float32],
    adapted: NDArray[np.float32],
    merged: NDArray[np.float32],
    *,
    is_trained: bool = True,
) -> MergeResult:
    """Check that merged logits equal the adapters', to 1e-5 x max(1, largest |logit|), and that training changed them.

    Logits are (rows, outputs): `adapted` in the training process, `merged` reloaded from disk.

    Raises:
        KdcError: a check fails.
    """
    difference, tolerance = check_equal(
        merged,
        adapted,
        _TOLERANCE,
        problem="the merged model's answers differ from the trained student's",
        where="the tuning set",
        remedy="run again with --from student; if that fails, report the settings of the student",
    )
    learned = float(np.abs(merged - untrained).max())
    if is_trained and learned <= 100 * tolerance:
        raise KdcError(
            "the training did not change the student's answers",
            given=f"largest difference {learned:.2e}",
            remedy="train longer or raise --set student.learning_rate",
        )
    return MergeResult(max_difference=difference, tolerance=tolerance, difference_from_untrained=learned)
