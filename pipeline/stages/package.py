"""Stage `package`: build the artifact and judge it.

Writes `artifacts/<fingerprint>/` atomically and links `artifact` to it. Writes `rejected/<fingerprint>/` instead if it
fails its contract.
"""

import itertools
import json
import os
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.decision import slice_notes
from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.inspection import labels_in_words
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, MANIFEST_NAME, Manifest, TaskInfo
from kdc.artifact.question_forms import read_questions
from kdc.common.files import write_whole
from kdc.pipeline.config.aims import questions_of
from kdc.pipeline.evaluation.evidence import answers_of, look_of, score_to_keep, teacher_note, tuning_scores
from kdc.pipeline.evaluation.thresholds import decided_task
from kdc.pipeline.evaluation.variants import CASCADE, CASCADE_FP32, Variants, variants_of
from kdc.pipeline.graphs.files import TOKENIZER_JSON, read_tokenizer_info
from kdc.pipeline.packaging.card import model_card
from kdc.pipeline.packaging.hugging_face import add_hugging_face_files, card_metadata
from kdc.pipeline.packaging.lineage import base_models, hub_dataset, lineage_of
from kdc.pipeline.packaging.manifest import ONNX_FILES, manifest_of, without_unused_cascades
from kdc.pipeline.quality.judging import judge_artifact, judged_device
from kdc.pipeline.quality.slices import slice_figures
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult, ExportResult, PackageResult, QuantizeResult
from kdc.pipeline.results.data import VocabularyResult
from kdc.pipeline.results.training import MergeResult, StudentResult, TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import EVALUATION, MADE_FROM, SETTINGS, TEACHER_LOGITS
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.pipeline.rundir.record import read_result


def depends_on(run: Run) -> dict[str, Any]:
    terms = run.config.contract.terms
    operating = run.config.operating
    settings = {"formats": run.config.export.formats, **operating.model_dump(exclude={"question"})}
    if operating.question is not None:
        settings["questions"] = [question.model_dump() for question in read_questions(operating.question)]
    cascade = run.result_or_none(CascadeResult)
    if cascade is not None:
        settings["cascade"] = cascade.note
    if run.config.data.slices:
        settings["slices"] = run.config.data.slices
    if terms is not None:
        settings |= {"contract": terms.model_dump(), **this_machine(run.device)}
    return settings


def run(run: Run, out: Path) -> PackageResult:
    evaluated, quantized = run.result(EvaluateResult), run.result(QuantizeResult)
    for unfinished in (run.root / "artifacts").glob("*.tmp"):  # interrupted or refused
        shutil.rmtree(unfinished, ignore_errors=True)
    working = run.root / "artifacts" / f"{run.fingerprints['package'][:16]}.tmp"
    working.mkdir(parents=True)
    _copy_files(run, working, with_int8=quantized.int8)
    variants, exported = variants_of(run), run.result(ExportResult)
    folded = run.result(MergeResult).temperature
    manifest = manifest_of(working, evaluated.table, exported, quantized, variants, lineage_of(run), folded)
    questions = questions_of(run.config.operating.question, manifest.task)
    manifest = manifest.model_copy(update={"questions": questions})
    manifest, judgement, notes = _judged(run, working, manifest, variants)
    manifest = without_unused_cascades(working, manifest)
    notes.append(_cascade_note(run.result_or_none(CascadeResult), manifest))
    example = _example(manifest.task)
    attempts, task = run.result(TeacherResult).attempts, run.data().task
    of_teacher = teacher_note(run.result(TargetsResult).baseline_comparison, attempts, manifest.task.metric)
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
            note
            for note in (
                labels_in_words(manifest.lineage.labels),
                of_teacher,
                "" if run.student.has_all_pieces else run.result(VocabularyResult).note,
                quantized.note,
                _fp16_note(manifest),
                *evaluated.notes,
                *notes,
            )
            if note
        ),
        example=example,
        headline=f"{final.name}, sha256 {manifest.sha256[:16]}{verdict}",
    )


def _judged(
    run: Run, folder: Path, manifest: Manifest, variants: Variants
) -> tuple[Manifest, Judgement | None, list[str]]:
    """Raises BoundNotShown if no threshold keeps the bounds on the tuning set."""
    data, contract, quantized = run.data(), run.config.contract.terms, run.result(QuantizeResult)
    comparison, metric = run.result(TargetsResult).baseline_comparison, data.task.metrics[0]
    slices = data.slices(run.config.data.slices, run.student_role)
    answers = replace(answers_of(data, run.folder("evaluate"), comparison), slices=slices)
    targets, notes = run.folder("targets") / TEACHER_LOGITS, list[str]()

    def with_decisions(manifest: Manifest) -> Manifest:
        variant, temperature = manifest.providers[CPU_PROVIDER], manifest.temperature
        task, more = decided_task(
            run.config.operating,
            data,
            variants,
            answers,
            variant=variant,
            temperature=temperature,
            teacher=np.load(targets, mmap_mode="r")[np.asarray(data.rows("tune")["row"][:])],
        )
        notes.extend(more)
        return manifest.model_copy(update={"task": task})

    def with_slices(manifest: Manifest) -> Manifest:
        served, names = manifest.providers[CPU_PROVIDER], data.task.metrics
        figures = slice_figures(answers, served, manifest.task, names, manifest.temperature)
        notes.extend(slice_notes(figures))
        return manifest.model_copy(update={"slices": figures})

    if contract is None:
        return with_slices(with_decisions(manifest)), None, notes
    write_manifest(folder, manifest)  # the engine needs a manifest
    student, teacher = run.result(StudentResult).tune[metric], run.result(TeacherResult).tune[metric]
    to_keep = score_to_keep(comparison, teacher, contract.against)
    scores = tuning_scores(student, quantized, variants.pairs, metric)
    tuning = {variant: score - to_keep for variant, score in scores.items()}
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
    return with_slices(manifest), judgement, notes


def is_intact(root: Path) -> bool:
    result = read_result(root, PackageResult)
    folders = [root / result.artifact] + ([] if result.failed else [root / "artifact"])
    return all((folder / MANIFEST_NAME).exists() for folder in folders)


def note_run(folder: Path, settings: str, fingerprints: dict[str, str]) -> None:
    """Also after a skip: other stages may have run."""
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
    if cascade is None:
        return ""
    if cascade.variants and CASCADE not in manifest.variants:
        return "no second model is taken: with one, the artifact would miss its contract"
    if not cascade.variants or f"{CASCADE_FP32} (cuda)" in manifest.metrics:
        return cascade.note
    return f"{cascade.note}; a GPU loads the student alone, since none ran both here"


def _fp16_note(manifest: Manifest) -> str:
    if "fp16" not in manifest.variants or manifest.providers[CUDA_PROVIDER] != "fp32":
        return ""
    return "fp16 was not run on a GPU here, so a GPU loads fp32; KDC_VARIANT=fp16 loads fp16 anyway"


def _new_name(path: Path) -> Path:
    """Numbered if taken: an artifact may be in use."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent), target_is_directory=True)
    os.replace(temporary, link)


def _example(task: TaskInfo) -> str:
    texts = [" ".join(name.split()) for name in (task.text, task.text_pair) if name is not None]
    if task.name == "pydocs":
        texts = [
            "What does `shutil.copytree` do?",
            "Recursively copy a directory tree and return the destination directory.",
        ]
    return shlex.join(texts)
