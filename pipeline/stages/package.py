"""Stage `package`: the artifact, which is the product.

Reads `data/`, `export/`, `quantize/`, `evaluate/`. Writes `artifacts/<fingerprint>/` whole or not at all, then points
the symlink `artifact` at it. One that fails its contract goes to `rejected/<fingerprint>/`, and no link names it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kdc.artifact.card import model_card
from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    MANIFEST_NAME,
    Lineage,
    Manifest,
    TaskInfo,
    TokenizerInfo,
    Variant,
)
from kdc.common import machine
from kdc.pipeline.config.settings import TeacherSettings
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.data.served import task_info, texts_of
from kdc.pipeline.quality.judging import EvaluationAnswers, judge_variants, judged_device
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.served import ALL_LOGITS, TOKENIZER_INFO
from kdc.pipeline.training.minilm import HUB_ID

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tokenizers",
    "datasets",
    "numpy",
)
# Of the run that ended with this artifact; a later start may leave other settings and stages in the run directory.
SETTINGS = "config.json"
MADE_FROM = "stages.json"  # fingerprints of the stages, by name


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make the artifact, judge it if there is a contract, and point `artifact` at it unless it failed."""
    evaluated, quantized = run.metrics("evaluate"), run.metrics("quantize")
    working = run.root / "artifacts" / f"{run.fingerprints['package'][:16]}.tmp"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    _copy_files(run, working, with_int8=quantized["int8"])
    manifest = _manifest(run, working, evaluated, quantized)
    judgement, contract = None, run.config.contract.terms
    if contract is not None:
        write_manifest(working, manifest)  # the engine loads what has one
        manifest, judgement = judge_variants(
            working,
            manifest,
            contract,
            _answers(run),
            device=judged_device(run.device),
            int8_allowed=quantized["chosen"] is not None,
            seed=run.config.run.seed,
        )
    example = _example(manifest.task)
    (working / "README.md").write_text(model_card(manifest, quantized, judgement, example), encoding="utf-8")
    files = manifest.files | describe_files(working, ["README.md"])
    manifest = write_manifest(working, manifest.model_copy(update={"files": files, "contract": judgement}))
    failed = judgement is not None and judgement.verdict == "fail"
    final = _new_name(run.root / ("rejected" if failed else "artifacts") / working.stem)
    final.parent.mkdir(exist_ok=True)
    os.rename(working, final)
    load_manifest(final)
    if not failed:
        _point(run.root / "artifact", final)
    notes = [note for note in (quantized["note"], *evaluated["notes"]) if note]
    verdict = "" if judgement is None else f", contract: {judgement.verdict}"
    return {
        "artifact": str(final.relative_to(run.root)),
        "sha256": manifest.sha256,
        "providers": manifest.providers,
        "table": evaluated["table"],
        "metric": manifest.task.metric,
        "contract": None if judgement is None else judgement.model_dump(mode="json"),
        "notes": notes,
        "example": example,
        "headline": f"{final.name}, sha256 {manifest.sha256[:16]}{verdict}",
    }


def _answers(run: Run) -> EvaluationAnswers:
    """What stage `evaluate` kept of all models on the evaluation split."""
    data = run.data()
    split = data.eval_splits[0]
    rows = data.rows(split)
    with np.load(run.folder("evaluate") / ALL_LOGITS) as arrays:
        logits = {name.removeprefix(f"{split}/"): arrays[name] for name in arrays if name.startswith(f"{split}/")}
    return EvaluationAnswers(texts_of(rows), np.asarray(rows["label"][:]), logits["teacher"], logits)


def is_intact(root: Path) -> bool:
    """Whether the artifact that was made is still there, and the link, unless it failed its contract."""
    made = json.loads((root / "package" / "stage.json").read_text(encoding="utf-8"))["metrics"]
    failed = (made.get("contract") or {}).get("verdict") == "fail"
    places = [root / made["artifact"]] + ([] if failed else [root / "artifact"])
    return all((place / MANIFEST_NAME).exists() for place in places)


def note_run(run: Run) -> None:
    """Keep what a finished run was, for its report: also where this stage was skipped, since others may not have been
    (a search with more hours that found the same student)."""
    texts = {SETTINGS: run.config.model_dump_json(indent=2), MADE_FROM: json.dumps(run.fingerprints, indent=2)}
    for name, text in texts.items():
        temporary = run.folder("package") / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, run.folder("package") / name)


def _new_name(path: Path) -> Path:
    """The path, or with a number where there is one already: an artifact that may be in use is never touched."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _copy_files(run: Run, target: Path, *, with_int8: bool) -> None:
    export = run.folder("export")
    for name in ("model.onnx", "model.fp16.onnx", "tokenizer.json"):
        if (export / name).exists():
            shutil.copyfile(export / name, target / name)
    if with_int8:
        shutil.copyfile(run.folder("quantize") / "model.int8.onnx", target / "model.int8.onnx")
    shutil.copyfile(run.folder("evaluate") / "evaluation.npz", target / "evaluation.npz")


def _variants(
    run: Run, folder: Path, table: dict[str, dict[str, Any]], quantized: dict[str, Any]
) -> dict[str, Variant]:
    exported = run.metrics("export")
    parity = {"fp32": exported["fp32_parity"], "fp16": exported.get("fp16_parity")}
    files = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}
    costs = ("latency_p50_ms", "latency_p95_ms", "rows_per_second")
    found = {}
    for name, file in files.items():
        if name not in table or not (folder / file).exists():
            (folder / file).unlink(missing_ok=True)  # made, but dropped when it was evaluated
            continue
        measured = table.get(f"{name} (cuda)", table[name]) if name == "fp16" else table[name]
        memory = measured.get("peak_memory_bytes")
        int8 = quantized["candidates"][quantized["winner"]] if name == "int8" else {}
        found[name] = Variant(
            file=file,
            size_bytes=measured["size_bytes"],
            metrics={key: value for key, value in measured.items() if _is_metric(key)},
            parity=int8.get("parity") if name == "int8" else parity[name],
            batch_invariance=int8.get("max_probability_difference"),
            candidate=quantized["winner"] if name == "int8" else None,
            peak_memory_mb=round(memory / 1e6, 1) if memory else None,
            **{key: measured.get(key) for key in costs},
        )
    return found


def _is_metric(key: str) -> bool:
    from kdc.pipeline.quality.metrics import METRICS

    return key.removesuffix("_mismatched") in METRICS


def _manifest(run: Run, folder: Path, evaluated: dict[str, Any], quantized: dict[str, Any]) -> Manifest:
    """Of the files that are in the folder so far."""
    variants = _variants(run, folder, evaluated["table"], quantized)
    info = TokenizerInfo.model_validate_json((run.folder("export") / TOKENIZER_INFO).read_text(encoding="utf-8"))
    return Manifest(
        kdc_version=importlib.metadata.version("kdc"),
        task=task_info(run.data().task),
        lineage=_lineage(run),
        files=describe_files(folder, sorted(file.name for file in folder.iterdir())),
        tokenizer=info,
        input_names=info.input_names,
        variants=variants,
        providers={
            CPU_PROVIDER: "int8" if quantized["chosen"] else "fp32",
            CUDA_PROVIDER: "fp16" if "fp16" in variants and holds_on_cuda("fp16", evaluated["table"]) else "fp32",
        },
        temperature=quantized["temperature"],
        metrics=evaluated["table"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def holds_on_cuda(variant: str, table: dict[str, Any]) -> bool:
    """False where CUDA was measured and the variant failed there: fp16 may overflow on a GPU alone, since the CPU
    computes it in fp32."""
    return f"{variant} (cuda)" in table or not any(name.endswith(" (cuda)") for name in table)


def _lineage(run: Run) -> Lineage:
    config = run.config
    student = run.student.model
    cut_from = "finetuned" if config.teacher.finetuned else config.student.cut_from
    if config.teacher.scores is not None:
        cut_from = "pretrained"
    return Lineage(
        teacher=_teacher_name(config.teacher),
        student=f"{student} of the {cut_from} teacher" if student.startswith("layers:") else _public_name(student),
        recipe=config.run.recipe,
        data_fingerprint=run.fingerprints["data"],
        seed=config.run.seed,
        packages=machine.versions(_PACKAGES),
        cpu=str(machine.cpu()["model"]),
        gpu=gpu_name(run.device),
        label_share=_label_share(run.data()),
    )


def _label_share(data: PreparedData) -> tuple[float, ...] | None:
    """How common each label is among the training rows, so that a service can tell when its answers drift."""
    if data.task.kind == "regression":
        return None
    labels = np.asarray(data.rows("train")["label"][:])
    if data.task.kind == "classification":
        labels = labels[:, None] == np.arange(data.task.outputs)
    return tuple(np.asarray(labels, dtype=np.float64).mean(axis=0).round(6).tolist())


def _teacher_name(settings: TeacherSettings) -> str:
    if settings.scores is not None:
        return f"a black box ({settings.scores.name})"
    return " + ".join(_public_name(source) for source in settings.sources)


def _public_name(model: str) -> str:
    """An id as it is, a local path as its last part: the artifact says nothing of the machine's folders."""
    if model == "minilm":
        return HUB_ID
    return Path(model).name if Path(model).exists() else model


def gpu_name(device: str) -> str | None:
    """Of the GPU that a run trains on; None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return str(torch.cuda.get_device_name())


def _point(link: Path, target: Path) -> None:
    """Make the symlink point at the new artifact in one step: a reader finds the old one or the new one."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent), target_is_directory=True)
    os.replace(temporary, link)


def _example(task: TaskInfo) -> str:
    texts = [task.text] + ([task.text_pair] if task.text_pair else [])
    if task.name == "pydocs":
        texts = [
            "What does `shutil.copytree` do?",
            "Recursively copy a directory tree and return the destination directory.",
        ]
    return shlex.join(texts)
