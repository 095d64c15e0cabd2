"""The pipeline, top to bottom: from a labelled task to a verified artifact.

A stage whose fingerprint (its settings, and everything before it) still matches is skipped; one that was cut off goes
on from what its folder holds (`folders.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from kdc.common import machine
from kdc.common.errors import InputError
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config, StudentSettings, TeacherSettings
from kdc.pipeline.data.request import source_of, task_of
from kdc.pipeline.data.sources import input_fingerprint
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.directory import claim, locked, root_of
from kdc.pipeline.rundir.folders import Stage, fingerprint_of, forget, run_stage
from kdc.pipeline.rundir.ranks import ALONE, Ranks, join
from kdc.pipeline.stages import (
    candidates,
    controls,
    data,
    evaluate,
    export,
    merge,
    package,
    quantize,
    search,
    student,
    targets,
    teacher,
)
from kdc.pipeline.training import models

STAGES = (
    Stage("data", data.run, lambda run: _data_settings(run.config), (), check=data.check),
    Stage(
        "candidates",
        candidates.run,
        lambda run: _candidates(run),
        ("data",),
        candidates.is_intact,
        wanted=lambda config: config.measures_first,
        check=candidates.check,
    ),
    Stage("teacher", teacher.run, lambda run: _teachers(run.config), ("labelled",)),
    Stage("targets", targets.run, lambda run: run.config.targets.model_dump(), ("data", "teacher")),
    Stage(
        "search",
        search.run,
        lambda run: _training(run.config, run.config.student) | _search(run),
        ("targets",),
        wanted=lambda config: config.searches,
    ),
    Stage("student", student.run, lambda run: _training(run.config, run.student), ("targets",)),
    Stage("merge", merge.run, lambda run: {}, ("student",)),
    Stage("export", export.run, lambda run: run.config.export.model_dump(), ("merge",)),
    Stage("quantize", quantize.run, lambda run: run.config.quantize.model_dump() | _machine(run), ("export",)),
    Stage("controls", controls.run, lambda run: {"controls": run.config.run.controls}, ("teacher", "student")),
    Stage(
        "evaluate",
        evaluate.run,
        lambda run: run.config.evaluate.model_dump() | {"device": run.config.run.device} | _machine(run),
        ("quantize", "controls"),
    ),
    Stage("package", package.run, lambda run: _contract(run), ("evaluate",), package.is_intact),
)


_LAST_SHARED = "student"  # several processes train; the rest is one's work


def _training(config: Config, settings: TeacherSettings | StudentSettings) -> dict[str, Any]:
    """What a training depends on: the model's contents, not its name, and not how its result is judged."""
    source = settings.model
    cut = source.startswith("layers:")
    return {
        **settings.model_dump(exclude={"model", "more", "scores", "allow_majority"}),
        "model": models.parse_layers(source, models.depth(config.teacher.model)) if cut else models.fingerprint(source),
        "seed": config.run.seed,
        "precision": config.run.precision,
    }


def _teachers(config: Config) -> dict[str, Any]:
    more = [models.fingerprint(source) for source in config.teacher.sources[1:]]
    return _training(config, config.teacher) | {"more": more, "scores": _scores(config)}


def _scores(config: Config) -> list[str] | None:
    """A black box's file, and all rows: its answers are kept by row id, unlabelled rows among them."""
    file = config.teacher.scores
    if file is None or not file.is_file():
        return None
    return [hashlib.sha256(file.read_bytes()).hexdigest(), input_fingerprint(source_of(config))]


def _candidates(run: Run) -> dict[str, Any]:
    """What measuring depends on: not the limits, so that another limit does not measure again."""
    config = run.config
    return {
        **config.contract.at.model_dump(),
        "students": candidates.students_of(config),
        "precisions": candidates.precisions(run),
        "calibration_rows": config.quantize.calibration_rows,
        "exporter": config.export.exporter,
        **_machine(run),
    }


def _search(run: Run) -> dict[str, Any]:
    contract = run.config.contract
    return {"search": contract.search, "max_hours": contract.max_hours, "kept": candidates.kept(run)}


def _contract(run: Run) -> dict[str, Any]:
    terms = run.config.contract.terms
    return {} if terms is None else {"contract": terms.model_dump(mode="json"), **_machine(run)}


def _machine(run: Run) -> dict[str, Any]:
    """What latencies, and int8's and fp16's arithmetic, depend on: in a run directory that moved, they are measured
    again."""
    return {"machine": [machine.cpu()["model"], machine.cores()["usable"], package.gpu_name(run.device)]}


def _data_settings(config: Config) -> dict[str, Any]:
    """What the rows and their tokens depend on: the contents of the files, not where they lie."""
    return _labelled_settings(config) | {
        "rows": input_fingerprint(source_of(config)),
        "student_model": _student_tokenizer(config),
    }


def _labelled_settings(config: Config) -> dict[str, Any]:
    """What the teacher's rows depend on."""
    paths = {"data", "train", "eval", "unlabeled"}
    return {
        **config.data.model_dump(mode="json", exclude=paths),
        "task_name": task_of(config).name,
        "seed": config.run.seed,
        "rows": input_fingerprint(dataclasses.replace(source_of(config), unlabeled=None)),
        "teacher_models": [models.fingerprint(source) for source in config.teacher.sources],
    }


def _student_tokenizer(config: Config) -> str:
    student = config.student.model
    return "the teacher's" if student.startswith("layers:") else models.fingerprint(student)


def compress(
    config: Config,
    *,
    reporter: Reporter,
    start_from: str | None = None,
    until: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Run all stages that are not done yet.

    Args:
        config: resolved settings.
        reporter: whom to tell.
        start_from: redo from that stage on, though its fingerprint matches.
        until: stop after that stage.
        force: redo all.

    Returns:
        out (run directory), stages (each with its metrics and whether it was skipped), and, when `package` ran,
        artifact (path). In a process that only helps (`ranks.py`): out, and no stages.

    Raises:
        InputError, KdcError: as the stages say.
    """
    stages = [stage for stage in STAGES if stage.wanted(config)]
    names = [stage.name for stage in stages]
    for name in (start_from, until):
        if name is not None and name not in names:
            raise InputError("no such stage in this run", given=name, remedy=f"one of {', '.join(names)}")
    root = root_of(config)
    device, _ = _device(config)
    ranks = join(device)
    if ranks.rank > 0:
        ranks.help(open_run(root, config, reporter, ranks))
        return {"out": str(root), "stages": {}}
    redo_from = names.index(start_from) if start_from else (0 if force else len(stages))
    last = names.index(until) if until else len(stages) - 1
    results = {}
    with ranks.leading(), locked(root):
        run = open_run(root, config, reporter, ranks)
        claim(root, config, [stage.name for stage in STAGES])
        ranks.check_batches(config)
        ranks.together(_see_directory, run, config=config.model_dump_json())
        run.fingerprints["labelled"] = fingerprint_of("labelled", _plain(_labelled_settings(config)), [])
        for stage in stages[redo_from:]:
            forget(root, stage.name)
        for stage in stages[: last + 1]:
            settings = _plain(stage.settings(run))
            fingerprint = fingerprint_of(stage.name, settings, [run.fingerprints[name] for name in stage.after])
            run.fingerprints[stage.name] = fingerprint
            results[stage.name] = run_stage(run, stage, settings, fingerprint, reporter)
            stage.check(run)
            if stage.name == _LAST_SHARED:
                ranks.dismiss()
        if last == len(stages) - 1:
            package.note_run(run)
    summary: dict[str, Any] = {"out": str(root), "stages": results}
    if last == len(stages) - 1:
        result = run.metrics("package")
        failed = (result.get("contract") or {}).get("verdict") == "fail"
        summary["artifact"] = str(root / (result["artifact"] if failed else "artifact"))
        summary["result"] = result
    return summary


def _see_directory(run: Run, *, config: str) -> None:
    """What every rank does first: see that it has the leader's settings and run directory.

    Raises:
        InputError: it has not.
    """
    file = run.root / "config.json"
    if run.config.model_dump_json() != config:
        raise InputError("the processes were given different settings", remedy="the same command for all of them")
    if not file.exists() or Config.model_validate_json(file.read_text(encoding="utf-8")) != run.config:
        raise InputError(
            "the processes do not see the same run directory",
            given=run.root.absolute(),
            remedy="--out on a disk that all hosts share",
        )


def open_run(root: Path, config: Config, reporter: Reporter, ranks: Ranks = ALONE) -> Run:
    """A run directory as stages are given it.

    Raises:
        InputError: the device that was asked for is not there.
    """
    device, bf16 = _device(config)
    return Run(
        root=root, config=config, device=device, bf16=bf16, ranks=ranks, progress=reporter.progress, say=reporter.say
    )


def _device(config: Config) -> tuple[str, bool]:
    """Where to train, and whether in bf16.

    Raises:
        InputError: CUDA was asked for and is not there, or bf16 was and the device has none.
    """
    import torch

    wanted = config.run.device
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise InputError("no CUDA device is available", given="--device cuda", remedy="`kdc doctor` says why")
    device = "cuda" if has_cuda and wanted != "cpu" else "cpu"
    if config.run.precision == "auto":
        return device, _has_fast_bf16(device)
    bf16 = config.run.precision == "bf16"
    if bf16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("this GPU has no bf16", given="run.precision=bf16", remedy="--set run.precision=fp32")
    return device, bf16


def _has_fast_bf16(device: str) -> bool:
    """CUDA with bf16 units, or a CPU with AMX or AVX-512's bf16 products."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.6
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON holds it, so that settings compare equal after a reading."""
    return json.loads(json.dumps(settings, default=str))
