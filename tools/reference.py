"""What an artifact is compared with on labelled rows: answers that it keeps, or the teacher."""

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Contract
from kdc.artifact.manifest import TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.fields import hashes_of
from kdc.pipeline.data.overlap import connect
from kdc.pipeline.data.prepared import digest
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.rundir.files import BASELINE_SUFFIX, EVALUATION
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import RowTokenizer, Text

_BATCH = 32
_MOST_BYTES = 1 << 30  # unpacked
_TEACHER = "teacher_logits"  # in `EVALUATION`


class Reference(NamedTuple):
    other: Other | None
    groups: NDArray[np.integer]  # (rows,); dependent within a group
    look: int  # see `Quality`


def kept_reference(artifact: Path, engine: Engine, texts: Sequence[Text], contract: Contract) -> Reference:
    """The kept answers. A variant not judged before is one more look.

    Raises:
        InputError: the artifact was not evaluated on some rows.
        KdcError: the artifact keeps no readable evaluation.
    """
    path, manifest = artifact / EVALUATION, engine.manifest
    if manifest is None or EVALUATION not in manifest.files:  # no hash covers an unlisted file
        raise KdcError("the artifact does not list its evaluation", given=path, remedy="add --teacher PATH")
    with _evaluation(path) as kept:
        name, digests, groups = _to_beat(kept.files, contract), kept["text_sha256"], kept["group"]
        logits = kept[name]
        known = {row.tobytes(): number for number, row in enumerate(digests)}
    rows = np.array([known.get(digest(text), -1) for text in texts])
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        given = f"{len(missing)} of {len(texts)} rows, the first is row {missing[0] + 1}"
        remedy = "add --teacher PATH, e.g. runs/qnli/teacher/model"
        raise InputError("rows that the artifact was not evaluated on need the teacher", given=given, remedy=remedy)
    model = "teacher" if name == _TEACHER else name.removesuffix(BASELINE_SUFFIX)
    judged = manifest.contract
    look = 1 if judged is None or judged.look is None else judged.look + (judged.variant != engine.variant)
    return Reference(Other(model, logits[rows]), groups[rows], look)


def reference_if_kept(artifact: Path, engine: Engine, texts: Sequence[Text], contract: Contract) -> Reference:
    """`kept_reference`, or only the rows' groups."""
    try:
        return kept_reference(artifact, engine, texts, contract)
    except KdcError:
        return Reference(None, connect(*hashes_of(texts)), 1)


def refuse_better_baseline(artifact: Path, engine: Engine, contract: Contract) -> None:
    """Raise InputError if the contract compares with a baseline that beat the teacher."""
    manifest = engine.manifest
    if contract.against == "teacher" or manifest is None or EVALUATION not in manifest.files:
        return
    with _evaluation(artifact / EVALUATION) as kept:
        name = _to_beat(kept.files, contract)
    if name != _TEACHER:
        what = "the contract compares with a baseline that beat the teacher, and it has no answers to these rows"
        remedy = "the evaluation rows without --teacher, or --against teacher"
        raise InputError(what, given=name.removesuffix(BASELINE_SUFFIX), remedy=remedy)


def _evaluation(path: Path) -> Any:
    remedy = "copy the artifact again from its source, or add --teacher PATH"
    return arrays_of(path, "the artifact's evaluation", remedy)


def _to_beat(names: Sequence[str], contract: Contract) -> str:
    better = [name for name in names if name.endswith(BASELINE_SUFFIX) and contract.against == "best"]
    return better[0] if better else _TEACHER


@contextmanager
def arrays_of(path: Path, what: str, remedy: str) -> Iterator[Any]:
    """Open a foreign .npz file, without unpickling. Raises KdcError if it exceeds 1 GiB, or the block raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes once unpacked")
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except Exception as error:  # numpy, zipfile and zlib raise many
        raise KdcError(f"{what} cannot be read", given=f"{path}: {error}", remedy=remedy) from error


def teacher_of(task: Task, teacher: str, like: TokenizerInfo) -> Callable[[Sequence[Text]], NDArray[np.float32]]:
    """A function to logits (rows, outputs). It cuts rows as the artifact does, or to the teacher's maximum."""
    from kdc.pipeline.models import loading
    from kdc.pipeline.training.joining import set_join
    from kdc.pipeline.training.predict import answer_texts
    from kdc.pipeline.training.teachers import load_finetuned

    model = load_finetuned(teacher, task, None).eval()
    tokenizer = loading.load_tokenizer(teacher)
    longest = min(like.max_length, loading.longest_input(model.config, tokenizer))
    typed = "token_type_ids" in tokenizer.model_input_names
    info = tokenizer_info(tokenizer, max_length=longest, token_type_ids=typed, long=like.long)
    if like.long is not None and not hasattr(model.config, "kdc_join"):
        set_join(model, like.long.join)
    with tempfile.TemporaryDirectory(prefix="kdc-") as folder:  # a hub id has no folder
        tokenizer.backend_tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
        rows = RowTokenizer.read(Path(folder) / "tokenizer.json", info)

    return lambda texts: np.concatenate(
        [answer_texts(model, texts[start : start + _BATCH], rows, info) for start in range(0, len(texts), _BATCH)]
    )
