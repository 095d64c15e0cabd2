"""`kdc verify`: judges again, on this machine, whether an artifact keeps its contract.

Latency and int8 arithmetic differ between machines. Metrics need the compress extra.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract, replace
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, Device, Manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import required_label
from kdc.pipeline.quality.judging import Answers, judge_again, load
from kdc.pipeline.quality.latency import rows_of, rows_to_time
from kdc.serving.engine.engine import Engine

_LENGTHS = (8, 16, 32, 64)  # tokens of timed rows, without a contract


def open_artifact(
    artifact: Path,
    contract: Contract | None,
    given: Mapping[str, Any],
    device: Device | None,
    expect_sha256: str | None,
) -> tuple[Path, Manifest, Engine, Contract]:
    """Check an artifact's hashes and load it, by default on the kind of device where it was judged."""
    folder = artifact.resolve()  # links may change
    manifest = load_manifest(folder, expect_sha256=expect_sha256)
    before = manifest.contract
    if contract is None:
        contract = before.contract if before is not None else Contract()
    contract = replace(contract, given)
    if device is None:
        device = "cpu" if before is None or before.provider == CPU_PROVIDER else "cuda"
    return folder, manifest, load(folder, contract, device), contract


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
) -> tuple[Judgement, Judgement | None]:
    """Further arguments are as in `kdc.verify`. Returns the judgement, and the artifact's own.

    Args:
        given: limits and conditions that replace the contract's.
        labelled: the filled file of `texts_to_label`, instead of `data`.
        columns: of `data`, and how `labelled` is written, see `kdc.tools.labelled.read_rows_for`.

    Raises:
        InputError: there is no limit, the file does not fit, or its rows need a teacher.
    """
    if labelled is not None and data is not None:
        both = f"--data {data}, --labelled {labelled}"
        raise InputError("the verdict takes one labelled file", given=both, remedy="drop one")
    given = given or {}
    folder, manifest, engine, contract = open_artifact(artifact, contract, given, device, expect_sha256)
    if not contract.limits.set_ones:
        remedy = "set a limit, for example --max-latency-ms 5 or --max-drop 1; `kdc verify --help` lists them"
        raise InputError("the artifact has no contract", given=folder, remedy=remedy)
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
        answers = judged_by_labels(labelled, engine, contract, columns or {}), ()
    is_measured = answers is not None or not _limits_on_answers(contract)
    if answers is None:
        answers = _answers_of_before(contract, before, engine.variant)
    timed = rows_to_time(engine, rows, contract.at)
    return judge_again(engine, contract, timed, answers, compared=is_measured), before


def _answers_of_before(contract: Contract, before: Judgement | None, variant: str) -> Answers:
    """The earlier answers. Other limits, confidence or variants need rows."""
    limits, options = contract.limits, _limits_on_answers(contract)
    if not options:
        return None, ()
    was = contract if before is None else before.contract
    given = ", ".join(options)
    if before is not None and before.look is not None:
        is_same = (was.confidence, before.variant) == (contract.confidence, variant)
        if is_same and limits.max_drop in (None, was.limits.max_drop) and {*limits.require} <= {*was.limits.require}:
            counted = {count.requirement: count for count in before.required}
            quality = None if limits.max_drop is None else before.quality
            return quality, tuple(counted[requirement] for requirement in limits.require)
        judged = ", ".join(_limits_on_answers(was))
        given += f"; {before.variant} was judged by {judged}, with {100 * was.confidence:g} % confidence"
    remedy = "add --data FILE, the labelled evaluation rows"
    raise InputError("a limit on answers cannot be judged without rows", given=given, remedy=remedy)


def _limits_on_answers(contract: Contract) -> list[str]:
    drop, options = contract.limits.max_drop, [f"--require {text}" for text in contract.limits.require]
    return options if drop is None else [f"--max-drop {drop:g}", *options]
