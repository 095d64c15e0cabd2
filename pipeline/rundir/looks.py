"""How often a run's evaluation rows were used to judge a model, whatever became of it: each look uses them up a little.

Writes `looks.json` into the run directory, which outlives stages that are done again.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from kdc.common.errors import KdcError
from kdc.common.files import write_whole

LOOKS = "looks.json"
_LOOKS = TypeAdapter(dict[str, list[str]])


def look_at(root: Path, rows: bytes, answers: NDArray[np.generic]) -> int:
    """Count the judgement of a model by evaluation rows.

    The same answers are the same look: another limit asks nothing new of the rows, since no limit changes the interval.

    Args:
        root: the run directory.
        rows: a fingerprint of the evaluation rows and their labels.
        answers: of the model to these rows: all that it is judged by, so its decisions too where these are judged.

    Returns:
        Which look this is, from 1.

    Raises:
        KdcError: the file that counts them cannot be read.
    """
    file = root / LOOKS
    try:
        looks = _LOOKS.validate_json(file.read_bytes()) if file.exists() else {}
    except ValueError:
        raise KdcError(
            "the count of looks at the evaluation rows is damaged",
            given=file,
            remedy="restore it, or name another --out",
        ) from None
    judged = looks.setdefault(rows.hex()[:16], [])
    fingerprint = hashlib.sha256(np.ascontiguousarray(answers).tobytes()).hexdigest()[:16]
    if fingerprint not in judged:
        judged.append(fingerprint)
        write_whole(file, json.dumps(looks, indent=2))
    return judged.index(fingerprint) + 1
