"""An artifact on a file of labelled rows: its metrics, for `kdc evaluate`, and beside its teacher, for `kdc verify`.

Needs the compress extra. The rows of the artifact's own evaluation need no teacher: the artifact keeps its answers.
"""

import contextlib
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import judge_drop
from kdc.artifact.contract.terms import Contract, Quality, Verdict, replace
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint, decision_table, sets_table
from kdc.artifact.manifest import Device, Manifest, TaskInfo, TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.common.frozen import Frozen
from kdc.common.tables import aligned
from kdc.pipeline.config.tasks import TASKS, Task, custom_task
from kdc.pipeline.data.prepared import digest, groups_of, read_labelled
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.abstaining import answered_rates
from kdc.pipeline.quality.comparison import Other, compare
from kdc.pipeline.quality.conformal import covered_rates
from kdc.pipeline.quality.intervals import score_interval
from kdc.pipeline.quality.judging import Answers, judge_answers
from kdc.pipeline.quality.operating import having, rates
from kdc.pipeline.rundir.files import BASELINE_SUFFIX, EVALUATION
from kdc.serving.engine.deciding import decided
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.long_texts import joined, spread
from kdc.serving.engine.tokenizing import RowTokenizer, Text, pad

_BATCH = 32
_MAX_DROP = 1.0  # points, where the artifact has no contract that says
_MOST_BYTES = 1 << 30  # most bytes of the unpacked evaluation: tens of millions of rows
_REMAKE = "copy the artifact again from where it came, or add --teacher PATH"


class Evaluation(Frozen):
    """What `kdc evaluate --json` prints."""

    artifact: str  # folder of the artifact
    rows: int  # how many the file holds
    variant: str | None  # the ONNX file that answered them
    provider: str  # the execution provider that ran it
    metrics: dict[str, float]  # points by name of the metric
    interval: tuple[float, float]  # of the task's deciding metric, in points, with a confidence of 95 %
    groups: int  # how many groups the rows form, which the interval counts
    # Beside what it is compared with in a contract, whose answers the artifact keeps; None on rows that it was not
    # evaluated on.
    compared: Quality | None
    max_drop: float | None  # points that it may lose there: the contract's, or one
    verdict: Verdict | None  # whether it is shown to keep to that
    points: tuple[OperatingPoint, ...]  # the labels' thresholds, with how they do on these rows as `evaluation`
    abstain: Abstention | None  # likewise, which rows are answered; None where all are
    sets: LabelSets | None  # likewise, sets of labels; None where there are none
    promised: dict[str, float]  # what the artifact's manifest states for this variant, of its own evaluation split


def evaluate_artifact(
    artifact: Path,
    data: Path,
    *,
    columns: Mapping[str, str | None],
    variant: str | None = None,
    device: Device = "auto",
) -> Evaluation:
    """Answer the rows of a file and compare the answers with the labels.

    Args:
        artifact: its folder.
        data: the file.
        columns: see `read_rows_for`.
        variant: None takes the manifest's choice.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: the file does not fit the artifact's task.
    """
    engine = Engine.load(artifact, variant=variant, device=device)
    task, texts, labels = read_rows_for(engine.task, data, columns)
    known = TASKS.get(engine.task.name)
    names = known.metrics if known is not None else task.metrics
    promised = engine.manifest.variants[engine.variant].metrics if engine.manifest is not None else {}  # type: ignore[index]
    logits, metric = engine.logits(texts), engine.task.metric or names[0]
    compared, contract, groups = _compared(artifact, engine, texts, logits, labels, metric)
    probabilities, abstain, sets = engine.activated(logits), engine.task.abstain, engine.task.sets
    if abstain is not None:
        abstain = abstain.model_copy(update={"evaluation": answered_rates(probabilities, labels, abstain)})
    if sets is not None:
        sets = sets.model_copy(update={"evaluation": covered_rates(probabilities, labels, sets)})
    return Evaluation(
        artifact=str(artifact),
        rows=len(texts),
        variant=engine.variant,
        provider=engine.provider,
        metrics=metrics.compute(logits, labels, task.kind, names),
        interval=score_interval(logits, labels, task.kind, metric, groups=groups),
        groups=len(np.unique(groups)),
        compared=compared,
        max_drop=None if compared is None else contract.limits.max_drop,
        verdict=None if compared is None else judge_drop(contract, compared),
        points=_measured(engine.task, probabilities, labels),
        abstain=abstain,
        sets=sets,
        promised=promised,
    )


def _compared(
    artifact: Path,
    engine: Engine,
    texts: Sequence[Text],
    logits: NDArray[np.floating],
    labels: NDArray[np.generic],
    metric: str,
) -> tuple[Quality | None, Contract, NDArray[np.integer]]:
    """The artifact beside what its contract compares with, None where it keeps no answers to these rows; that contract,
    or one about a point where it has none; and the rows' groups, (rows,)."""
    task, judged = engine.task, None if engine.manifest is None else engine.manifest.contract
    contract = Contract() if judged is None else judged.contract
    if contract.limits.max_drop is None:
        contract = replace(Contract(), {"max_drop": _MAX_DROP})
    try:
        other, groups = _kept_answers(artifact, engine.manifest, texts, contract)
    except KdcError:
        return None, contract, groups_of(texts)
    look = _look_of(engine)
    quality = compare(logits, other, labels, task.kind, metric, contract=contract, groups=groups, look=look)
    return quality, contract, groups


def _measured(
    task: TaskInfo, probabilities: NDArray[np.floating], labels: NDArray[np.generic]
) -> tuple[OperatingPoint, ...]:
    """The task's operating points with their rates on labelled rows."""
    if not task.points:
        return ()
    gets, points = decided(probabilities, task), []
    for point in task.points:
        place = task.labels.index(point.label)
        points.append(point.model_copy(update={"evaluation": rates(gets[:, place], having(labels, place))}))
    return tuple(points)


def render(evaluation: Evaluation) -> str:
    """The metrics on the file beside those that the artifact promises, a line for each."""
    lines = [f"{evaluation.rows} rows through {evaluation.variant} on {evaluation.provider}"]
    for name, value in evaluation.metrics.items():
        promised = evaluation.promised.get(name)
        beside = "" if promised is None else f"   (on its own evaluation split {promised:.2f})"
        lines.append(f"{name:<12}{value:8.2f}{beside}")
    low, high = evaluation.interval
    lines.append(f"95 % interval, by {evaluation.groups} groups of rows: {low:.2f} to {high:.2f}")
    if (found := evaluation.compared) is not None:
        gap = f"{found.difference:+.2f} ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})"
        asked = f"at most {evaluation.max_drop:g} points below the {found.against}"
        lines.append(f"{asked}: {gap}, {evaluation.verdict}")
    if evaluation.points or evaluation.abstain is not None:
        lines.append("(of the most probable label, or of labels from one half on; decisions by thresholds are below)")
    for decisions in (decision_table(evaluation.points, evaluation.abstain), sets_table(evaluation.sets)):
        lines += ["", aligned(decisions)] if decisions else []
    return "\n".join(lines)


def compare_again(
    artifact: Path,
    engine: Engine,
    contract: Contract,
    data: Path,
    columns: Mapping[str, str | None],
    teacher: str | None,
) -> tuple[list[Text], Answers]:
    """Read a labelled file, compare the artifact with its teacher on its rows, and count its decisions.

    Args:
        artifact: its folder, whose `evaluation.npz` keeps the teacher's logits by the rows' fingerprints.
        engine: the artifact, loaded.
        contract: what is asked.
        data: the labelled file.
        columns: see `read_rows_for`.
        teacher: path or hub id of a teacher that answers all rows; None takes the logits that the artifact keeps.

    Returns:
        The texts of the rows, the comparison, None where the contract asks for no `max_drop`, and the decisions.

    Raises:
        InputError: the file does not fit the task, or holds rows whose logits the artifact does not keep and no
            teacher is given.
    """
    info = engine.task
    task, texts, labels = read_rows_for(info, data, columns)
    other: Other | None = None
    groups: NDArray[np.integer] = groups_of(texts)
    look = 1
    if contract.limits.max_drop is not None and teacher is None:
        other, groups = _kept_answers(artifact, engine.manifest, texts, contract)
        look = _look_of(engine)
    else:
        if contract.limits.max_drop is not None and teacher is not None:
            _refuse_better_baseline(artifact, engine.manifest, contract)
            other = Other("teacher", _teacher_logits(texts, task, teacher, engine.tokenizer_info))
        with contextlib.suppress(KdcError):  # the rows may be those of the evaluation all the same
            _, groups = _kept_answers(artifact, engine.manifest, texts, contract)
            look = _look_of(engine)
    if other is None and not contract.limits.require:
        return texts, (None, ())
    logits = engine.logits(texts)
    probabilities = engine.activated(logits)
    return texts, judge_answers(
        logits, probabilities, labels, info, contract=contract, other=other, groups=groups, look=look
    )


def _look_of(engine: Engine) -> int:
    """Which look at its evaluation rows it is to judge an artifact by them: the one by which it was judged already, and
    one more for another variant than that."""
    judged = engine.manifest.contract if engine.manifest is not None else None
    if judged is None or judged.look is None:
        return 1
    return judged.look + (judged.variant != engine.variant)


def read_rows_for(
    info: TaskInfo, data: Path, columns: Mapping[str, str | None]
) -> tuple[Task, list[Text], NDArray[np.generic]]:
    """Read a labelled file as an artifact takes its rows.

    Args:
        info: the artifact's task.
        data: the labelled file.
        columns: names of the columns `text`, `text_pair` and `label`, and the `separator` of labels in one cell; None,
            or left out, for those that are named as in training.

    Returns:
        The artifact's task with the file's columns, the texts, and the labels: (rows,), or (rows, outputs) in {0, 1}
        for multi-label.

    Raises:
        InputError: the file does not fit the task.
    """
    task = custom_task(
        info.name,
        columns.get("text") or info.text,
        columns.get("text_pair") or info.text_pair,
        columns.get("label") or "label",
        info.kind,
        info.labels,
    )
    texts, labels = read_labelled(data, task, separator=columns.get("separator"))
    return task, texts, np.asarray(labels)


def _kept_answers(
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
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise KdcError("the artifact's evaluation is too large", given=path, remedy="add --teacher PATH")
        with np.load(path, allow_pickle=False) as kept:
            better = [name for name in kept.files if name.endswith(BASELINE_SUFFIX) and contract.against == "best"]
            digests, logits = kept["text_sha256"], kept[better[0] if better else "teacher_logits"]
            groups = kept["group"] if "group" in kept.files else None
        known = {row.tobytes(): place for place, row in enumerate(digests)}
        if logits.shape != (len(digests), manifest.task.outputs):
            raise ValueError(f"logits of shape {logits.shape}")
        if groups is not None and (groups.shape != digests.shape[:1] or groups.dtype.kind not in "iu"):
            raise ValueError(f"groups of shape {groups.shape}")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise KdcError("the artifact's evaluation cannot be read", given=f"{path}: {error}", remedy=_REMAKE) from error
    places = np.array([known.get(digest(text), -1) for text in texts])
    missing = np.flatnonzero(places < 0)
    if len(missing):
        raise InputError(
            "rows that the artifact was not evaluated on need the teacher",
            given=f"{len(missing)} of {len(texts)} rows, the first is row {missing[0] + 1}",
            remedy="add --teacher PATH, e.g. runs/qnli/teacher/model",
        )
    name = better[0].removesuffix(BASELINE_SUFFIX) if better else "teacher"
    return Other(name, logits[places]), groups_of(texts) if groups is None else groups[places]


def _refuse_better_baseline(artifact: Path, manifest: Manifest | None, contract: Contract) -> None:
    """Refuse a comparison with the teacher alone where the contract asks for one with a baseline that was better.

    Raises:
        InputError: the artifact keeps such a baseline's answers, and nobody has its answers to other rows.
    """
    if contract.against == "teacher" or manifest is None or EVALUATION not in manifest.files:
        return
    with zipfile.ZipFile(artifact / EVALUATION) as archive:
        better = [name for name in archive.namelist() if name.endswith(f"{BASELINE_SUFFIX}.npy")]
    if better:
        raise InputError(
            "the contract compares with a baseline that was better than the teacher, and has no answers to these rows",
            given=better[0].removesuffix(f"{BASELINE_SUFFIX}.npy"),
            remedy="the evaluation rows without --teacher, or --against teacher",
        )


def _teacher_logits(texts: Sequence[Text], task: Task, teacher: str, like: TokenizerInfo) -> NDArray[np.float32]:
    """Have a fine-tuned teacher answer the rows, cut or divided as the artifact does it or to what it takes: (rows,
    outputs)."""
    import torch

    from kdc.pipeline.models import loading
    from kdc.pipeline.training.teachers import load_finetuned

    model = load_finetuned(teacher, task, None).eval()
    tokenizer = loading.load_tokenizer(teacher)
    longest = min(like.max_length, loading.longest_input(model.config, tokenizer))
    typed = "token_type_ids" in tokenizer.model_input_names
    info = tokenizer_info(tokenizer, max_length=longest, token_type_ids=typed, long=like.long)
    join = getattr(model.config, "kdc_join", None) or (() if like.long is None else like.long.join)
    with tempfile.TemporaryDirectory(prefix="kdc-") as folder:  # a hub id has no folder on this machine
        tokenizer.backend_tokenizer.save(f"{folder}/tokenizer.json", pretty=False)
        rows = RowTokenizer.read(Path(folder) / "tokenizer.json", info)
    parts = []
    for start in range(0, len(texts), _BATCH):
        encodings, counts = spread(rows.encode(texts[start : start + _BATCH]))
        turns = [pad(encodings[at : at + _BATCH], info) for at in range(0, len(encodings), _BATCH)]
        feeds = [{name: torch.from_numpy(values) for name, values in turn.items()} for turn in turns]
        with torch.inference_mode():
            logits = np.concatenate([model(**turn).logits.numpy() for turn in feeds])
        parts.append(logits if like.long is None else joined(logits, counts, join, task.kind))
    return np.concatenate(parts)
