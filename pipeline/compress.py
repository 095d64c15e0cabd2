"""`kdc compress` for people who watch."""

import contextlib
import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdc.artifact.contract.text import render as render_contract
from kdc.artifact.inspection import cells
from kdc.common.errors import KdcError
from kdc.common.files import disk_is_full
from kdc.common.progress import Reporter
from kdc.common.tables import aligned
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.data.sources import locate
from kdc.pipeline.models.minilm import HUB_ID, find_minilm
from kdc.pipeline.results.training import LabelErrorsResult
from kdc.pipeline.rundir.directory import FRONTIER, note_command, root_of
from kdc.pipeline.rundir.record import CompressResult, FrontierResult
from kdc.pipeline.training import ranks


def compress_for_people(
    config: Config,
    *,
    start_from: str | None = None,
    until: str | None = None,
    force: bool = False,
    command: str | None = None,
) -> CompressResult:
    """`kdc.pipeline.run.compress` with progress on stderr, a report, and errors that say how to resume.

    Args:
        command: resumes the run; None from Python.

    Raises:
        KdcError: as the stages say; also for Ctrl-C and a full disk.
        SystemExit: on a helper rank, if another reports the error.
    """
    with _watched(config, command) as reporter:
        from kdc.pipeline.run import compress

        result = compress(config, reporter=reporter, start_from=start_from, until=until, force=force)
        if command and result.stages:
            note_command(result.out, command)
        if result.result is None:
            return result
        report = _report(result.out, reporter, sha256=result.result.sha256, examples=config.report.examples)
        return result.model_copy(update={"report": report})


def frontier_for_people(
    config: Config, *, start_from: str | None = None, force: bool = False, command: str | None = None
) -> FrontierResult:
    """`make_frontier` like `compress_for_people`."""
    with _watched(config, command) as reporter:
        from kdc.pipeline.frontier import make_frontier
        from kdc.pipeline.stages.candidates import curve_of

        facts = make_frontier(config, reporter=reporter, start_from=start_from, force=force)
        root = root_of(config)
        if command:
            note_command(root, command)
        if facts.points[0].student == curve_of(config)[0]:  # otherwise the first student failed
            _report(root, reporter, sha256=facts.points[0].sha256, examples=config.report.examples)
        return FrontierResult(out=root, page=root / f"{FRONTIER}.html", facts=facts)


@contextlib.contextmanager
def _watched(config: Config, command: str | None) -> Iterator[Reporter]:
    rank = ranks.rank()
    try:
        task_of(config.data)
        locate(config.data)
        with (
            _told_how_to_go_on(command),
            Reporter(quiet=rank > 0) as reporter,
            contextlib.redirect_stdout(sys.stderr),  # stdout is for the result
        ):
            prepare_libraries(offline=is_local(config))
            yield reporter
    except KdcError as error:
        if ranks.is_told_by_another(error, rank):
            raise SystemExit(error.exit_code) from error
        raise


@contextlib.contextmanager
def _told_how_to_go_on(command: str | None) -> Iterator[None]:
    again = f"run this again to resume: {command}" if command else "call again to resume"
    try:
        yield
    except KeyboardInterrupt:
        raise ranks.Stopped("stopped by Ctrl-C; finished stages and checkpoints are kept", remedy=again) from None
    except ranks.Lost as error:
        raise ranks.Lost(error.what, given=error.given, remedy=again) from error
    except Exception as error:
        if disk_is_full(error):
            raise KdcError(
                "the disk is full; finished stages are kept", given=error, remedy=f"make room, then {again}"
            ) from error
        raise


def _report(root: Path, reporter: Reporter, *, sha256: str, examples: bool) -> Path:
    from kdc.pipeline.report.page import reported_artifact, write_report

    if reported_artifact(root) != sha256:
        reporter.say("report: starts")
        facts = write_report(root, examples=examples)
        reporter.say(f"report: {facts.verdict}")
    return root / "report.html"


def render(compressed: CompressResult) -> str:
    result = compressed.result
    if result is None:
        return f"stopped as asked; the run is in {compressed.out}"
    lines = [aligned(cells(result.table, result.metric)), ""]
    lines += [f"{provider} loads {variant}" for provider, variant in result.providers.items()]
    lines += [f"note: {note}" for note in result.notes]
    if (audit := compressed.stages.get(LabelErrorsResult.STAGE)) is not None:
        lines.append(audit.metrics["headline"])
    if result.contract is not None:
        lines += ["", render_contract(result.contract), ""]
    lines += [
        f"artifact: {compressed.artifact}",
        f"report:   {compressed.report}",
        f"try it:   kdc try {shlex.quote(str(compressed.artifact))} {result.example}",
    ]
    return "\n".join(lines)


def render_frontier(frontier: FrontierResult) -> str:
    from kdc.pipeline.report.frontier import table as points

    lines = [aligned(points(frontier.facts)), ""]
    lines += [f"left out: {left.student}: {left.why}" for left in frontier.facts.left]
    lines += [f"{point.student}: {frontier.out / point.artifact}" for point in frontier.facts.points]
    return "\n".join([*lines, "", f"frontier: {frontier.page}"])


def is_local(config: Config) -> bool:
    rows = config.data.data or config.data.train or (config.data.task or "").lower() == "pydocs"
    models = config.teacher.sources + (() if config.student.kind.is_of_teacher else (config.student.model,))
    return bool(rows) and all(
        Path(model).exists() or (model == "minilm" and find_minilm() != HUB_ID) for model in models
    )


def prepare_libraries(*, offline: bool) -> None:
    """Call before the import of transformers and datasets."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if ranks.is_launched():
        # DDP warns if its search for unused weights finds none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # About settings that transformers 5 renamed (4.57 lacks the new names), and file systems' clocks.
    warnings.filterwarnings("ignore", module="transformers")
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def command_to_go_on(arguments: Sequence[str]) -> str:
    """Without `--from`, which would redo finished stages."""
    remaining = [
        argument
        for before, argument in itertools.pairwise(["", *arguments])
        if before != "--from" and not argument.startswith("--from")
    ]
    return f"{ranks.launcher()} {shlex.join(remaining)}"
