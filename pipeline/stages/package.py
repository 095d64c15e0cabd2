"""Stage `package`: the artifact, which is the product.

Reads `data/`, `export/`, `quantize/`, `evaluate/`. Writes `artifacts/<fingerprint>/` whole or not at all, then points
the symlink `artifact` at it. An artifact that fails its contract goes to `rejected/<fingerprint>/` without a link.
"""

import itertools
import json
import os
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, MANIFEST_NAME, Manifest, TaskInfo
from kdc.common.files import write_whole
from kdc.pipeline.evaluation.evidence import answers_of, look_of, score_to_keep, teacher_note, tuning_scores
from kdc.pipeline.evaluation.thresholds import decided_task
from kdc.pipeline.evaluation.variants import CASCADE, CASCADE_FP32, Variants, variants_of
from kdc.pipeline.graphs.files import TOKENIZER_JSON, read_tokenizer_info
from kdc.pipeline.packaging.card import model_card
from kdc.pipeline.packaging.hugging_face import add_hugging_face_files, card_metadata
from kdc.pipeline.packaging.lineage import base_models, hub_dataset, lineage_of
from kdc.pipeline.packaging.manifest import ONNX_FILES, manifest_of, without_unused_cascades
from kdc.pipeline.quality.judging import Tuning, judge_artifact, judged_device
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult, ExportResult, PackageResult, QuantizeResult
from kdc.pipeline.results.training import StudentResult, TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import EVALUATION, MADE_FROM, SETTINGS
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.pipeline.rundir.record import read_result


def depends_on(run: Run) -> dict[str, Any]:
    """What the artifact holds and decides by; the contract, and the machine that it is judged on."""
    terms = run.config.contract.terms
    settings = {"formats": run.config.export.formats, **run.config.operating.model_dump()}
    cascade = run.result_or_none(CascadeResult)
    if cascade is not None:
        settings["cascade"] = cascade.note
    if terms is not None:
        settings |= {"contract": terms.model_dump(), **this_machine(run.device)}
    return settings


def run(run: Run, out: Path) -> PackageResult:
    """Make the artifact, judge it if there is a contract, and point `artifact` at it unless it failed. Raises as
    `_judged`."""
    evaluated, quantized = run.result(EvaluateResult), run.result(QuantizeResult)
    for unfinished in (run.root / "artifacts").glob("*.tmp"):  # of a start that was cut off, or refused
        shutil.rmtree(unfinished, ignore_errors=True)
    working = run.root / "artifacts" / f"{run.fingerprints['package'][:16]}.tmp"
    working.mkdir(parents=True)
    _copy_files(run, working, with_int8=quantized.int8)
    variants, exported = variants_of(run), run.result(ExportResult)
    manifest = manifest_of(working, evaluated.table, exported, quantized, variants, lineage_of(run))
    manifest, judgement, notes = _judged(run, working, manifest, variants)
    manifest = without_unused_cascades(working, manifest)
    notes.append(_cascade_note(run.result_or_none(CascadeResult), manifest))
    example = _example(manifest.task)
    attempts, task = run.result(TeacherResult).attempts, run.data().task
    of_teacher = teacher_note(run.result(TargetsResult).standing, attempts, manifest.task.metric)
    models = base_models(run.student.model, run.config.teacher.model)
    adapted = run.student.method == "lora"
    card = card_metadata(manifest, models=models, dataset=hub_dataset(task, run.config.data))
    card += model_card(manifest, quantized, judgement, example, teacher=of_teacher, adapted=adapted)
    (working / "README.md").write_text(card, encoding="utf-8")
    files = manifest.files | describe_files(working, ["README.md"])
    manifest = write_manifest(working, manifest.model_copy(update={"files": files, "contract": judgement}))
    failed = judgement is not None and judgement.verdict == "fail"
    final = _new_name(run.root / ("rejected" if failed else "artifacts") / working.stem)
    final.parent.mkdir(exist_ok=True)
    os.rename(working, final)
    load_manifest(final)
    if not failed:
        _point(run.root / "artifact", final)
    verdict = "" if judgement is None else f", contract: {judgement.verdict}"
    return PackageResult(
        artifact=str(final.relative_to(run.root)),
        sha256=manifest.sha256,
        providers=manifest.providers,
        table=evaluated.table,
        metric=manifest.task.metric,
        contract=judgement,
        sets=manifest.task.sets,
        notes=tuple(
            note for note in (of_teacher, quantized.note, _fp16_note(manifest), *evaluated.notes, *notes) if note
        ),
        example=example,
        headline=f"{final.name}, sha256 {manifest.sha256[:16]}{verdict}",
    )


def _judged(
    run: Run, folder: Path, manifest: Manifest, variants: Variants
) -> tuple[Manifest, Judgement | None, list[str]]:
    """The manifest with its decisions, the judgement, None without a contract, and notes on the decisions.

    Raises:
        BoundNotShown: the tuning slice shows no threshold that keeps the bounds on decisions.
    """
    data, contract, quantized = run.data(), run.config.contract.terms, run.result(QuantizeResult)
    standing, metric = run.result(TargetsResult).standing, data.task.metrics[0]
    answers = answers_of(data, run.folder("evaluate"), standing)
    notes: list[str] = []

    def with_decisions(manifest: Manifest) -> Manifest:
        """With the thresholds of the variant that a CPU loads."""
        variant, temperature = manifest.providers[CPU_PROVIDER], manifest.temperature
        task, more = decided_task(
            run.config.operating, data, variants, answers, variant=variant, temperature=temperature
        )
        notes.extend(more)
        return manifest.model_copy(update={"task": task})

    if contract is None:
        return with_decisions(manifest), None, notes
    write_manifest(folder, manifest)  # the engine loads only a folder that has one
    student, teacher = run.result(StudentResult).tune[metric], run.result(TeacherResult).tune[metric]
    tuning = Tuning(
        scores=tuning_scores(student, quantized, variants.pairs, metric),
        other=score_to_keep(standing, teacher, contract.against),
    )
    manifest, judgement = judge_artifact(
        folder,
        manifest,
        contract,
        answers,
        tuning,
        device=judged_device(run.device),
        int8_allowed=quantized.chosen is not None,
        look=partial(look_of, data, run.root),
        with_decisions=with_decisions,
    )
    return manifest, judgement, notes


def is_intact(root: Path) -> bool:
    """Whether the artifact is still there, and the link, unless it failed its contract."""
    result = read_result(root, PackageResult)
    folders = [root / result.artifact] + ([] if result.failed else [root / "artifact"])
    return all((folder / MANIFEST_NAME).exists() for folder in folders)


def note_run(folder: Path, settings: str, fingerprints: dict[str, str]) -> None:
    """Keep the settings and fingerprints of a finished run in the stage's folder, for its report. A run notes them also
    if this stage was skipped: another stage may not have been."""
    write_whole(folder / SETTINGS, settings)
    write_whole(folder / MADE_FROM, json.dumps(fingerprints, indent=2))


def _copy_files(run: Run, target: Path, *, with_int8: bool) -> None:
    export = run.folder("export")
    shutil.copyfile(export / TOKENIZER_JSON, target / TOKENIZER_JSON)
    for variant, (name, made_as) in ONNX_FILES.items():
        made = run.folder("quantize") / made_as if variant == "int8" else export / made_as
        if made.exists() and (variant != "int8" or with_int8):
            shutil.copyfile(made, target / name)
    shutil.copyfile(run.folder("evaluate") / EVALUATION, target / EVALUATION)
    if "hf" in run.config.export.formats:
        add_hugging_face_files(run.folder("merge") / "model", target, read_tokenizer_info(export))


def _cascade_note(cascade: CascadeResult | None, manifest: Manifest) -> str:
    """The result of looking for a second model; "" without a search for one."""
    if cascade is None:
        return ""
    if cascade.variants and CASCADE not in manifest.variants:
        return "no second model is taken: with one the artifact would not keep its contract"
    if not cascade.variants or f"{CASCADE_FP32} (cuda)" in manifest.metrics:
        return cascade.note
    return f"{cascade.note}; a GPU loads the student alone, since none ran both here"


def _fp16_note(manifest: Manifest) -> str:
    """A note on an fp16 variant that a GPU does not load; "" if there is none."""
    if "fp16" not in manifest.variants or manifest.providers[CUDA_PROVIDER] != "fp32":
        return ""
    return "fp16 was not run on a GPU here, so that a GPU loads fp32; KDC_VARIANT=fp16 takes it all the same"


def _new_name(path: Path) -> Path:
    """The path, with a number if it exists: an artifact that may be in use is never touched."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def _point(link: Path, target: Path) -> None:
    """Make the symlink point at the new artifact in one step: a reader finds the old artifact or the new one."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent), target_is_directory=True)
    os.replace(temporary, link)


def _example(task: TaskInfo) -> str:
    """Arguments for `kdc try`, quoted for a shell, on one line; the names of the columns stand for texts."""
    texts = [" ".join(name.split()) for name in (task.text, task.text_pair) if name is not None]
    if task.name == "pydocs":
        texts = [
            "What does `shutil.copytree` do?",
            "Recursively copy a directory tree and return the destination directory.",
        ]
    return shlex.join(texts)
