"""`kdc verify`: judges again, on this machine, whether an artifact keeps its contract.

Latency and int8 arithmetic differ between machines. Metrics need the compress extra, and labels of all rows or of
differing rows.
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

_LENGTHS = (8, 16, 32, 64)  # tokens of the timed rows, without a contract


class Verification(NamedTuple):
    judgement: Judgement  # on this machine
    before: Judgement | None  # from the artifact; None without a contract


class Opened(NamedTuple):
    """A loaded artifact."""

    folder: Path
    manifest: Manifest
    engine: Engine
    contract: Contract


def open_artifact(
    artifact: Path,
    contract: Contract | None,
    given: Mapping[str, Any],
    device: Device | None,
    expect_sha256: str | None,
) -> Opened:
    """Check an artifact's hashes and load it, by default on the kind of device where it was judged."""
    folder = artifact.resolve()  # resolved once: a link may change
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
    """Check an artifact's hashes, then judge it. Further arguments are as in `kdc.verify`.

    Args:
        given: limits and conditions that replace the contract's.
        labelled: the filled file of `texts_to_label`, instead of `data`.
        columns: of `data`, see `kdc.tools.labelled.read_rows_for`.

    Raises:
        InputError: there is no limit, the file does not fit, or its rows need a teacher.
        KdcError: the artifact is damaged.
    """
    if labelled is not None and data is not None:
        given_files, remedy = f"--data {data}, --labelled {labelled}", "drop one"
        raise InputError("the verdict takes one labelled file", given=given_files, remedy=remedy)
    given = given or {}
    folder, manifest, engine, contract = open_artifact(artifact, contract, given, device, expect_sha256)
    if not contract.limits.set_ones:
        raise InputError(
            "the artifact has no contract",
            given=folder,
            remedy="set limits: --max-latency-ms 5, --max-size-mb 25, --max-drop 1, --min-rows-per-s 500, "
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
    """The earlier judgement's answers. Other limits, confidence or variants need rows, so are refused."""
    limits, options = contract.limits, _limits_on_answers(contract)
    if not options:
        return None, ()
    was = contract if before is None else before.contract
    if before is None or before.look is None:
        why = "the artifact was made without one"
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
    drop, options = contract.limits.max_drop, [f"--require {text}" for text in contract.limits.require]
    return options if drop is None else [f"--max-drop {drop:g}", *options]
