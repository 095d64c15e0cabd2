"""What an artifact is compared with on labelled rows: the answers that it keeps, or those of its teacher."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Contract
from kdc.artifact.manifest import Manifest, TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import digest
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.rundir.files import BASELINE_SUFFIX, EVALUATION
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import RowTokenizer, Text
from kdc.tools.answered import arrays_of

_BATCH = 32
_REMAKE = "copy the artifact again from where it came, or add --teacher PATH"


def look_of(engine: Engine) -> int:
    """Which look at its evaluation rows it is to judge an artifact by them: the one by which it was judged already, and
    one more for another variant than that."""
    judged = engine.manifest.contract if engine.manifest is not None else None
    if judged is None or judged.look is None:
        return 1
    return judged.look + (judged.variant != engine.variant)


def kept_answers(
    artifact: Path, manifest: Manifest | None, texts: Sequence[Text], contract: Contract
) -> tuple[Other, NDArray[np.integer]]:
    """What the contract compares with, by its logits (rows, outputs) on rows of the artifact's evaluation, and these
    rows' groups, (rows,).

    Raises:
        InputError: the artifact was not evaluated on some of the rows.
        KdcError: the artifact keeps no evaluation, or one that cannot be read.
    """
    path = artifact / EVALUATION
    if manifest is None or EVALUATION not in manifest.files:  # then nobody has checked its hash
        raise KdcError("the artifact does not list its evaluation", given=path, remedy="add --teacher PATH")
    with arrays_of(path, "the artifact's evaluation", _REMAKE) as kept:
        better = [name for name in kept.files if name.endswith(BASELINE_SUFFIX) and contract.against == "best"]
        digests, logits = kept["text_sha256"], kept[better[0] if better else "teacher_logits"]
        groups = kept["group"]
        known = {row.tobytes(): place for place, row in enumerate(digests)}
        if logits.shape != (len(digests), manifest.task.outputs):
            raise ValueError(f"logits of shape {logits.shape}")
        if groups.shape != digests.shape[:1] or groups.dtype.kind not in "iu":
            raise ValueError(f"groups of shape {groups.shape}")
    places = np.array([known.get(digest(text), -1) for text in texts])
    missing = np.flatnonzero(places < 0)
    if len(missing):
        raise InputError(
            "rows that the artifact was not evaluated on need the teacher",
            given=f"{len(missing)} of {len(texts)} rows, the first is row {missing[0] + 1}",
            remedy="add --teacher PATH, e.g. runs/qnli/teacher/model",
        )
    name = better[0].removesuffix(BASELINE_SUFFIX) if better else "teacher"
    return Other(name, logits[places]), groups[places]


def refuse_better_baseline(artifact: Path, manifest: Manifest | None, contract: Contract) -> None:
    """Refuse a comparison with the teacher alone where the contract asks for one with a baseline that was better.

    Raises:
        InputError: the artifact keeps such a baseline's answers, and nobody has its answers to other rows.
    """
    if contract.against == "teacher" or manifest is None or EVALUATION not in manifest.files:
        return
    with arrays_of(artifact / EVALUATION, "the artifact's evaluation", _REMAKE) as kept:
        better = [name for name in kept.files if name.endswith(BASELINE_SUFFIX)]
    if better:
        raise InputError(
            "the contract compares with a baseline that was better than the teacher, and has no answers to these rows",
            given=better[0].removesuffix(BASELINE_SUFFIX),
            remedy="the evaluation rows without --teacher, or --against teacher",
        )


def teacher_of(task: Task, teacher: str, like: TokenizerInfo) -> Callable[[Sequence[Text]], NDArray[np.float32]]:
    """Load a fine-tuned teacher: from rows, cut or divided as the artifact does it or to what it takes, to logits,
    (rows, outputs)."""
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
    with tempfile.TemporaryDirectory(prefix="kdc-") as folder:  # a hub id has no folder on this machine
        tokenizer.backend_tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
        rows = RowTokenizer.read(Path(folder) / "tokenizer.json", info)

    return lambda texts: np.concatenate(
        [answer_texts(model, texts[start : start + _BATCH], rows, info) for start in range(0, len(texts), _BATCH)]
    )
