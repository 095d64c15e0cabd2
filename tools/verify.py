"""`kdc verify`: judge again, on this machine, whether an artifact keeps its contract.

Another machine means another latency, and can mean other int8 arithmetic. Reads the artifact and, if one is given, a
file of labelled rows, or the labels of the rows on which the artifact and its teacher differ. Hashes, size and latency
need only the serving install; the metric needs the compress extra.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract, replace
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, Device, Manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import required_label
from kdc.pipeline.quality.judging import Answers, judge_again, load
from kdc.pipeline.quality.latency import rows_of, rows_to_time
from kdc.serving.engine.engine import Engine

_LENGTHS = (8, 16, 32, 64)  # tokens of the timed rows, for an artifact that keeps no lengths because it has no contract


class Verification(NamedTuple):
    """Two judgements of one artifact."""

    judgement: Judgement  # the one of now, on this machine
    before: Judgement | None  # the one that the artifact carries; None if it was made without a contract


class Opened(NamedTuple):
    """An artifact, loaded where it is judged."""

    folder: Path
    manifest: Manifest
    engine: Engine
    contract: Contract  # what is asked


def open_artifact(
    artifact: Path,
    contract: Contract | None,
    given: Mapping[str, Any],
    device: Device | None,
    expect_sha256: str | None,
) -> Opened:
    """Check the hashes of an artifact, and load it. Without a device it runs where its contract was judged before."""
    folder = artifact.resolve()  # the same artifact throughout, though a link may be pointed at another meanwhile
    manifest = load_manifest(folder, expect_sha256=expect_sha256)
    before = manifest.contract
    if contract is None:
        contract = before.contract if before is not None else Contract()
    contract = replace(contract, given)
    if device is None:
        device = "cpu" if before is None or before.provider == CPU_PROVIDER else "cuda"
    return Opened(folder, manifest, load(folder, contract, device), contract)


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
    """Check the hashes of an artifact, then judge it. See also `kdc.verify`.

    Args:
        given: single limits and conditions that replace those of the contract, or that are one by themselves; see
            `kdc.artifact.contract.terms.replace`.
        labelled: file that `texts_to_label` wrote, with labels; in place of `data`.
        columns: of `data`, see `kdc.tools.labelled.read_rows_for`.

    Raises:
        InputError: there is no contract and no limit, the file does not fit the task, or its rows need a teacher.
        KdcError: the artifact is damaged.
    """
    if labelled is not None and data is not None:
        given_files, remedy = f"--data {data}, --labelled {labelled}", "leave one out"
        raise InputError("the verdict is by one file of labels", given=given_files, remedy=remedy)
    given = given or {}
    folder, manifest, engine, contract = open_artifact(artifact, contract, given, device, expect_sha256)
    if not contract.limits.set_ones:
        raise InputError(
            "the artifact has no contract",
            given=folder,
            remedy="say what must hold: --max-latency-ms 5, --max-size-mb 25, --max-drop 1, --min-rows-per-s 500, "
            "--require accuracy>=0.9",
        )
    for requirement in contract.limits.require:
        required_label(requirement, engine.task)
    before, answers = manifest.contract, None
    if data is not None:
        from kdc.tools.labelled import compare_again

        rows, answers = compare_again(folder, engine, contract, data, columns or {}, teacher)
    else:
        rows = rows_of(before.lengths if before is not None else _LENGTHS, engine)
    if labelled is not None:
        from kdc.tools.filled import check_task, judged_by_labels
        from kdc.tools.reference import refuse_better_baseline

        check_task(engine.task, contract, given)
        refuse_better_baseline(folder, engine, contract)
        answers = judged_by_labels(labelled, engine, contract), ()
    is_measured = answers is not None or not _limits_on_answers(contract)
    if answers is None:
        answers = _answers_of_before(contract, before, engine.variant)
    timed = rows_to_time(engine, rows, contract.at)
    return Verification(judge_again(engine, contract, timed, answers, compared=is_measured), before)


def _answers_of_before(contract: Contract, before: Judgement | None, variant: str) -> Answers:
    """The answers by which the artifact was judged, since they cannot be measured again without rows. A judgement of
    other limits or another variant is refused."""
    limits, options = contract.limits, _limits_on_answers(contract)
    if not options:
        return None, ()
    was = contract if before is None else before.contract
    if before is None or before.look is None:
        why = "the artifact was made without such a limit"
    elif limits.max_drop not in (None, was.limits.max_drop) or not {*limits.require} <= {*was.limits.require}:
        why = f"it was judged by {', '.join(_limits_on_answers(was))}"
    elif was.confidence != contract.confidence:
        why = f"it was judged with {100 * was.confidence:g} % confidence"
    elif before.variant != variant:
        why = f"{before.variant} was judged, and {variant} is loaded here"
    else:
        counted = {count.requirement: count for count in before.required}
        quality = None if limits.max_drop is None else before.quality
        return quality, tuple(counted[requirement] for requirement in limits.require)
    raise InputError(
        "a limit on answers cannot be judged without rows",
        given=f"{', '.join(options)}; {why}",
        remedy="add --data FILE, the labelled evaluation rows",
    )


def _limits_on_answers(contract: Contract) -> list[str]:
    """The limits on answers, as options."""
    drop, options = contract.limits.max_drop, [f"--require {text}" for text in contract.limits.require]
    return options if drop is None else [f"--max-drop {drop:g}", *options]
