"""`kdc verify`: judge again, on this machine, whether an artifact keeps its contract.

Another machine means another latency, and can mean other int8 arithmetic. Reads the artifact and, if one is given, a
file of labelled rows, or the labels of the rows on which the artifact and its teacher differ. Hashes, size and latency
need only the serving install; the metric needs the compress extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract, replace
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, Device
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import required_label
from kdc.pipeline.quality.judging import Answers, judge_again, load
from kdc.pipeline.quality.latency import rows_of, rows_to_time
from kdc.serving.engine.engine import Engine

if TYPE_CHECKING:
    from kdc.tools.unlabelled import ToLabel

_LENGTHS = (8, 16, 32, 64)  # tokens of the timed rows, for an artifact that keeps no lengths because it has no contract


class Verification(NamedTuple):
    """Two judgements of one artifact."""

    judgement: Judgement  # the one of now, on this machine
    before: Judgement | None  # the one that the artifact carries; None where it was made without a contract


def verify_artifact(
    artifact: Path,
    *,
    contract: Contract | None = None,
    given: Mapping[str, Any] | None = None,
    data: Path | None = None,
    labelled: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    teacher: str | None = None,
    device: Device | None = None,
    expect_sha256: str | None = None,
) -> Verification:
    """Check the hashes of an artifact, then judge it.

    Args:
        artifact: its folder.
        contract: judged in place of the artifact's own; None takes the artifact's own.
        given: single limits and conditions that replace those of that contract, or that are one by themselves; see
            `kdc.artifact.contract.terms.replace`.
        data: file of labelled rows; those that the artifact was evaluated on need no teacher.
        labelled: file that `texts_to_label` wrote, with labels; in place of `data`.
        columns: names of the file's columns `text`, `text_pair` and `label`, and the `separator` of labels in one
            cell; None, or left out, for those that are named as in training.
        teacher: hub id or path of the teacher, for other rows.
        device: "cpu", "cuda" or "auto"; None measures where the contract was judged before, else on the CPU.
        expect_sha256: the SHA-256 that the manifest must have.

    Raises:
        InputError: there is no contract and no limit, the file does not fit the task, or its rows need a teacher.
        KdcError: the artifact is damaged.
    """
    artifact = artifact.resolve()  # the same artifact throughout, though a link may be pointed at another meanwhile
    if labelled is not None and data is not None:
        given_files, remedy = f"--data {data}, --labelled {labelled}", "leave one out"
        raise InputError("the verdict is by one file of labels", given=given_files, remedy=remedy)
    contract, before = _terms(artifact, contract, given or {}, expect_sha256)
    if not contract.limits.set_ones:
        raise InputError(
            "the artifact has no contract",
            given=artifact,
            remedy="say what must hold: --max-latency-ms 5, --max-size-mb 25, --max-drop 1, --min-rows-per-s 500, "
            "--require accuracy>=0.9",
        )
    engine = _opened(artifact, contract, before, device)
    for requirement in contract.limits.require:
        required_label(requirement, engine.task)
    if data is not None:
        from kdc.tools.labelled import compare_again

        texts, answers = compare_again(artifact, engine, contract, data, columns or {}, teacher)
        return Verification(
            judge_again(engine, contract, rows_to_time(engine, texts, contract.at), answers, compared=True), before
        )
    if labelled is not None:
        from kdc.tools.filled import judged_by_labels

        _check_differing(artifact, engine, contract, given or {})
        answers = judged_by_labels(labelled, engine, contract), ()
    else:
        answers = _answers_of_before(contract, before, engine.variant)
    rows = rows_of(before.lengths if before is not None else _LENGTHS, engine)
    timed, compared = rows_to_time(engine, rows, contract.at), labelled is not None or answers == (None, ())
    return Verification(judge_again(engine, contract, timed, answers, compared=compared), before)


def texts_to_label(
    artifact: Path,
    *,
    given: Mapping[str, Any],
    columns: Mapping[str, str | None],
    unlabelled: str | None = None,
    to_label: Path | None = None,
    teacher: str | None = None,
    teacher_column: str | None = None,
    most_labels: int | None = None,
    device: Device | None = None,
    expect_sha256: str | None = None,
) -> ToLabel:
    """Write the texts on which an artifact and its teacher differ, see `kdc.tools.unlabelled`; the other arguments are
    as in `verify_artifact`.

    Raises:
        InputError: an option is missing, or the artifact or the file does not fit.
        KdcError: the artifact is damaged.
    """
    from kdc.tools.unlabelled import write_texts_to_label

    if unlabelled is None or to_label is None:
        raise InputError(
            "rows without labels are read from one file, and the texts to label written into another",
            given="one of --unlabelled and --to-label",
            remedy="--unlabelled FILE --to-label OUT.csv; with labels in it, --labelled OUT.csv alone",
        )
    artifact = artifact.resolve()
    contract, before = _terms(artifact, None, given, expect_sha256)
    engine = _opened(artifact, contract, before, device)
    _check_differing(artifact, engine, contract, given)
    return write_texts_to_label(
        engine,
        contract,
        unlabelled,
        to_label,
        columns=columns,
        teacher=teacher,
        teacher_column=teacher_column,
        most_labels=most_labels,
    )


def _terms(
    artifact: Path, contract: Contract | None, given: Mapping[str, Any], expect_sha256: str | None
) -> tuple[Contract, Judgement | None]:
    """What is asked of an artifact, and how it was judged before."""
    before = load_manifest(artifact, expect_sha256=expect_sha256).contract
    if contract is None:
        contract = before.contract if before is not None else Contract()
    return replace(contract, given), before


def _opened(artifact: Path, contract: Contract, before: Judgement | None, device: Device | None) -> Engine:
    """The artifact, loaded where it is judged."""
    if device is None:
        device = "cpu" if before is None or before.provider == CPU_PROVIDER else "cuda"
    return load(artifact, contract, device)


def _check_differing(artifact: Path, engine: Engine, contract: Contract, given: Mapping[str, Any]) -> None:
    """Refuse a contract that the rows on which two models differ cannot judge.

    Raises:
        InputError: it asks for more than a drop in accuracy against the teacher.
    """
    from kdc.tools.compared import refuse_better_baseline
    from kdc.tools.unlabelled import check_task

    check_task(engine.task, contract, given)
    refuse_better_baseline(artifact, engine.manifest, contract)


def _answers_of_before(contract: Contract, before: Judgement | None, variant: str) -> Answers:
    """What the artifact's own judgement tells of the answers of the same variant for the same limits: without rows it
    cannot be measured again.

    Raises:
        InputError: the artifact's own judgement is of other limits or another variant.
    """
    limits, asked = contract.limits, _asked(contract)
    if not asked:
        return None, ()
    was = None if before is None else before.contract
    if before is None or was is None or before.look is None:
        why = "the artifact was made without such a limit"
    elif limits.max_drop not in (None, was.limits.max_drop) or not {*limits.require} <= {*was.limits.require}:
        why = f"it was judged by {', '.join(_asked(was))}"
    elif was.confidence != contract.confidence:
        why = f"it was judged with {100 * was.confidence:g} % confidence"
    elif before.variant != variant:
        why = f"{before.variant} was judged, and {variant} is loaded here"
    else:
        counted = {found.requirement: found for found in before.required}
        quality = None if limits.max_drop is None else before.quality
        return quality, tuple(counted[requirement] for requirement in limits.require)
    raise InputError(
        "a limit on answers cannot be judged without rows",
        given=f"{', '.join(asked)}; {why}",
        remedy="add --data FILE, the labelled evaluation rows",
    )


def _asked(contract: Contract) -> list[str]:
    """The limits on answers, as options."""
    drop = contract.limits.max_drop
    return ([] if drop is None else [f"--max-drop {drop:g}"]) + [
        f"--require {each}" for each in contract.limits.require
    ]
