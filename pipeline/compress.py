"""What `kdc compress` calls: one run for a person who watches."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.common.errors import KdcError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.request import check_request
from kdc.pipeline.rundir import ranks
from kdc.pipeline.rundir.commands import note_command
from kdc.pipeline.training.minilm import HUB_ID, find_minilm

if TYPE_CHECKING:
    from kdc.common.progress import Reporter


def compress_for_people(config: Config, *, start_from: str | None, until: str | None, force: bool) -> dict[str, Any]:
    """`kdc.pipeline.run.compress` with progress on stderr, quiet libraries, and errors that say how to go on.

    Returns:
        As `compress`, with the path of the report; nothing in a process that only helps.

    Raises:
        KdcError: as the stages say; also for Ctrl-C and a full disk.
        SystemExit: in a process that only helps, of an error that the leading one tells.
    """
    rank = ranks.rank()
    try:
        check_request(config)
        return _compress(config, start_from=start_from, until=until, force=force)
    except KdcError as error:
        if ranks.is_told_by_another(error, rank):
            raise SystemExit(error.exit_code) from error
        raise


def _compress(config: Config, *, start_from: str | None, until: str | None, force: bool) -> dict[str, Any]:
    from kdc.common.progress import Reporter

    reporter = Reporter(quiet=ranks.rank() > 0)
    command = _command_to_go_on()
    again = f"run the same command again to go on: {command}"
    try:
        prepare_libraries(config)
        from kdc.pipeline.run import compress

        with contextlib.redirect_stdout(sys.stderr):  # stdout is the result's alone
            result = compress(config, reporter=reporter, start_from=start_from, until=until, force=force)
            if not result["stages"]:  # this process only helped
                return {}
            root = Path(result["out"])
            note_command(root, command)
            if "artifact" in result:
                result["report"] = _report(root, config, reporter, sha256=result["result"]["sha256"])
            return result
    except KeyboardInterrupt:
        raise ranks.Stopped("stopped by Ctrl-C; finished stages and checkpoints are kept", remedy=again) from None
    except ranks.Lost as error:
        raise ranks.Lost(error.what, given=error.given, remedy=again) from error
    except Exception as error:
        if _disk_is_full(error):
            raise KdcError(
                "the disk is full; finished stages are kept", given=error, remedy=f"make room, then {again}"
            ) from error
        raise
    finally:
        reporter.stop()


def _report(root: Path, config: Config, reporter: Reporter, *, sha256: str) -> str:
    """Write the report where there is none of this artifact; its path."""
    from kdc.pipeline.report.page import reported_artifact, write_report

    path = root / "report.html"
    if reported_artifact(root) != sha256:
        reporter.say("report: starts")
        facts = write_report(root, examples=config.report.examples)
        reporter.say(f"report: {facts['verdict']}")
    return str(path)


def is_local(config: Config) -> bool:
    """Whether nothing that the run needs is on the hub."""
    rows = config.data.data or config.data.train or (config.data.task or "").lower() == "pydocs"
    student = config.student.model
    return bool(rows) and all(map(_here, config.teacher.sources)) and (student.startswith("layers:") or _here(student))


def _here(model: str) -> bool:
    return Path(model).exists() or (model == "minilm" and find_minilm() != HUB_ID)


def prepare_libraries(config: Config) -> None:
    """Before transformers and datasets are imported: no chatter, and no network for a run on local inputs."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if ranks.is_launched():
        # DDP warns that it looks for weights which a step does not use, in vain: some architectures have such.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if is_local(config):
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _command_to_go_on() -> str:
    """The command that was given, without what would redo finished stages."""
    kept, skip = [], False
    for argument in sys.argv[1:]:
        if not skip and argument != "--force" and not argument.startswith("--from"):
            kept.append(argument)
        skip = argument == "--from"
    return f"{ranks.launcher()} {shlex.join(kept)}"


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that there is no room. Libraries in Rust and C++ only say so
    in words."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
