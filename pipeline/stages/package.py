"""Stage `package`: the artifact, which is the product.

Reads `data/`, `export/`, `quantize/`, `evaluate/`. Writes `artifacts/<fingerprint>/` whole or not at all, then points
the symlink `artifact` at it. One that fails its contract goes to `rejected/<fingerprint>/`, and no link names it.
"""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, MANIFEST_NAME, Lineage, Manifest, TaskInfo, Variant
from kdc.common import machine
from kdc.common.files import write_whole
from kdc.pipeline.config.graph_settings import ExportSettings
from kdc.pipeline.config.student_names import UNCUT, is_of_teacher
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.data.sources import HUB_NAME
from kdc.pipeline.graphs.onnx_graph import versions_of
from kdc.pipeline.models.minilm import HUB_ID
from kdc.pipeline.models.vocabulary import read_kept
from kdc.pipeline.quality.judging import judge_artifact, judged_device
from kdc.pipeline.quality.metrics import METRICS
from kdc.pipeline.results import (
    CascadeResult,
    EvaluateResult,
    ExportResult,
    PackageResult,
    QuantizeResult,
    StudentResult,
    Table,
)
from kdc.pipeline.rundir.card import UNCUT_NAME, model_card
from kdc.pipeline.rundir.cascading import CASCADE, CASCADE_FP32, pairs_of, second_model, second_of
from kdc.pipeline.rundir.context import Run, read_tokenizer_info
from kdc.pipeline.rundir.evidence import answers_of, look_of, tuning_of
from kdc.pipeline.rundir.files import (
    EVALUATION,
    FP16_ONNX,
    FP32_ONNX,
    INT8_ONNX,
    MADE_FROM,
    SETTINGS,
    TOKENIZER_JSON,
)
from kdc.pipeline.rundir.fingerprints import gpu_name, this_machine
from kdc.pipeline.rundir.hugging_face import add_hugging_face_files, card_metadata
from kdc.pipeline.rundir.operating import decided_task
from kdc.pipeline.rundir.record import read_result
from kdc.pipeline.rundir.standing import teacher_note

# Packages whose versions the artifact names.
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
# The artifact's ONNX files, by the names under which transformers.js finds them, and as earlier stages name them.
_ONNX_FILES = {
    "fp32": ("model.onnx", FP32_ONNX),
    "int8": ("model_int8.onnx", INT8_ONNX),
    "fp16": ("model_fp16.onnx", FP16_ONNX),
}
# Those of a cascade's second model, by number format.
_SECOND_FILES = {"fp32": "second.onnx", "int8": "second_int8.onnx"}


def depends_on(run: Run) -> dict[str, Any]:
    """The contract, and the machine that it is judged on; what the artifact holds, where that is not the default."""
    terms, formats = run.config.contract.terms, run.config.export.formats
    settings: dict[str, Any] = {} if formats == ExportSettings().formats else {"formats": list(formats)}
    if run.config.operating.aims:
        settings["aims"] = list(run.config.operating.aims)
        settings["evidence"] = run.config.operating.evidence
    if run.config.operating.abstain is not None:
        settings["abstain"] = run.config.operating.abstain
    if run.config.operating.sets is not None:
        settings["sets"] = run.config.operating.sets
    if CASCADE in run.fingerprints:
        settings["cascade"] = run.result(CascadeResult).note
    if terms is not None:
        asked = terms.model_dump(mode="json")
        if not terms.limits.require:  # as runs of before have it
            del asked["limits"]["require"]
        settings |= {"contract": asked, **this_machine(run.device)}
    return settings


def run(run: Run, out: Path) -> PackageResult:
    """Make the artifact, judge it if there is a contract, and point `artifact` at it unless it failed."""
    evaluated, quantized = run.result(EvaluateResult), run.result(QuantizeResult)
    working = run.root / "artifacts" / f"{run.fingerprints['package'][:16]}.tmp"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    _copy_files(run, working, with_int8=quantized.int8)
    manifest = _manifest(run, working, evaluated.table, quantized)
    judgement, contract = None, run.config.contract.terms
    notes: list[str] = []  # on the decisions and the second model
    with_decisions = partial(_with_decisions, run, notes)
    if contract is None:
        manifest = with_decisions(manifest)
    else:
        write_manifest(working, manifest)  # the engine loads only a folder that has one
        manifest, judgement = judge_artifact(
            working,
            manifest,
            contract,
            answers_of(run),
            tuning_of(run, contract),
            device=judged_device(run.device),
            int8_allowed=quantized.chosen is not None,
            look=partial(look_of, run),
            with_decisions=with_decisions,
        )
    manifest = _without_unused_cascades(working, manifest)
    notes.append(_cascade_note(run, manifest))
    example = _example(manifest.task)
    adapted = run.student.method == "lora"
    card = card_metadata(manifest, models=_base_models(run), dataset=_hub_dataset(run))
    card += model_card(manifest, quantized, judgement, example, teacher=teacher_note(run), adapted=adapted)
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
            note for note in (teacher_note(run), quantized.note, _fp16_note(manifest), *evaluated.notes, *notes) if note
        ),
        example=example,
        headline=f"{final.name}, sha256 {manifest.sha256[:16]}{verdict}",
    )


def _with_decisions(run: Run, notes: list[str], manifest: Manifest) -> Manifest:
    """The manifest with the thresholds of the variant that a CPU loads; what is to be said of them goes to `notes`."""
    task, more = decided_task(run, manifest.providers[CPU_PROVIDER], manifest.temperature)
    notes += more
    return manifest.model_copy(update={"task": task})


def is_intact(root: Path) -> bool:
    """Whether the artifact that was made is still there, and the link, unless it failed its contract."""
    result = read_result(root, PackageResult)
    places = [root / result.artifact] + ([] if result.failed else [root / "artifact"])
    return all((place / MANIFEST_NAME).exists() for place in places)


def note_run(run: Run) -> None:
    """Keep the settings and fingerprints of a finished run, for its report: also where this stage was skipped, since
    others may not have been (a search with more hours that found the same student)."""
    write_whole(run.folder("package") / SETTINGS, run.config.model_dump_json(indent=2))
    write_whole(run.folder("package") / MADE_FROM, json.dumps(run.fingerprints, indent=2))


def _copy_files(run: Run, target: Path, *, with_int8: bool) -> None:
    export = run.folder("export")
    shutil.copyfile(export / TOKENIZER_JSON, target / TOKENIZER_JSON)
    for variant, (name, made_as) in _ONNX_FILES.items():
        made = run.folder("quantize") / made_as if variant == "int8" else export / made_as
        if made.exists() and (variant != "int8" or with_int8):
            shutil.copyfile(made, target / name)
    shutil.copyfile(run.folder("evaluate") / EVALUATION, target / EVALUATION)
    if "hf" in run.config.export.formats:
        add_hugging_face_files(run.folder("merge") / "model", target, read_tokenizer_info(export))


def _manifest(run: Run, folder: Path, table: Table, quantized: QuantizeResult) -> Manifest:
    """The manifest of the files that are in the folder so far."""
    variants = _variants(folder, table, run.result(ExportResult), quantized)
    variants |= _cascades(run, table, variants, folder)
    info = read_tokenizer_info(run.folder("export"))
    return Manifest(
        kdc_version=importlib.metadata.version("kdc"),
        task=run.data().task.info(),
        lineage=_lineage(run),
        files=describe_files(folder, sorted(file.name for file in folder.iterdir())),
        tokenizer=info,
        input_names=info.input_names,
        variants=variants,
        providers={
            CPU_PROVIDER: CASCADE if CASCADE in variants else "int8" if quantized.chosen else "fp32",
            CUDA_PROVIDER: on_cuda(variants, table),
        },
        temperature=quantized.temperature,
        metrics=table,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _variants(folder: Path, table: Table, exported: ExportResult, quantized: QuantizeResult) -> dict[str, Variant]:
    """What was measured of each ONNX file; a file that was dropped when it was evaluated is removed."""
    int8 = quantized.candidates[quantized.winner] if quantized.winner is not None else None
    parity = {
        "fp32": exported.fp32_parity,
        "int8": None if int8 is None else int8.parity,
        "fp16": exported.fp16_parity if isinstance(exported.fp16_parity, float) else None,
    }
    variants = {}
    for name, (file, _) in _ONNX_FILES.items():
        if name not in table or not (folder / file).exists():
            (folder / file).unlink(missing_ok=True)
            continue
        row: dict[str, Any] = table.get(f"{name} (cuda)", table[name]) if name == "fp16" else table[name]
        opset, ir = versions_of(folder / file)
        variants[name] = Variant(
            file=file,
            parity=parity[name],
            batch_invariance=int8.max_probability_difference if int8 is not None and name == "int8" else None,
            opset=opset,
            ir=ir,
            candidate=quantized.winner if name == "int8" else None,
            **_measured(row),
        )
    return variants


def _cascades(run: Run, table: Table, variants: Mapping[str, Variant], folder: Path) -> dict[str, Variant]:
    """What was measured of the student with a second model, whose files are put into the folder; the graph's versions
    are the newer ones of the two."""
    cascades = {}
    for name, pair in pairs_of(run).items():
        if name not in table or (name == CASCADE_FP32 and f"{name} (cuda)" not in table):  # it could not be run
            continue
        first, second = variants[pair.first], second_model(run).files[pair.second]
        shutil.copyfile(second, folder / _SECOND_FILES[pair.second])
        opset, ir = versions_of(second)
        assert first.opset is not None
        assert first.ir is not None
        cascades[name] = Variant(
            file=first.file,
            second=second_of(run, pair, _SECOND_FILES[pair.second]),
            opset=max(opset, first.opset),
            ir=max(ir, first.ir),
            **_measured(table.get(f"{name} (cuda)", table[name])),
        )
    return cascades


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table tells of a variant."""
    memory = row.get("peak_memory_bytes")
    return {
        "size_bytes": row["size_bytes"],
        "metrics": {key: value for key, value in row.items() if key.removesuffix("_mismatched") in METRICS},
        "latency_p50_ms": row.get("latency_p50_ms"),
        "latency_p95_ms": row.get("latency_p95_ms"),
        "rows_per_second": row.get("rows_per_second"),
        "peak_memory_mb": round(memory / 1e6, 1) if memory else None,
    }


def on_cuda(variants: Iterable[str], table: Table) -> str:
    """The variant that a GPU loads: a cascade in fp32, else fp16 where it was run on one, else fp32.
    fp16 may overflow on a GPU alone, since a CPU computes it in fp32."""
    if CASCADE_FP32 in variants:
        return CASCADE_FP32
    return "fp16" if "fp16" in variants and "fp16 (cuda)" in table else "fp32"


def _without_unused_cascades(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest, and the folder, without second models that no provider loads, since the contract is not kept so."""
    loaded = set(manifest.providers.values())
    variants = {name: each for name, each in manifest.variants.items() if each.second is None or name in loaded}
    unused = set(_SECOND_FILES.values()) - {file for each in variants.values() for file in each.graphs}
    for name in unused:
        (folder / name).unlink(missing_ok=True)
    files = {name: file for name, file in manifest.files.items() if name not in unused}
    return manifest.model_copy(update={"variants": variants, "files": files})


def _cascade_note(run: Run, manifest: Manifest) -> str:
    """What came of looking for a second model; "" where nobody looked."""
    if CASCADE not in run.fingerprints:
        return ""
    found = run.result(CascadeResult)
    if not found.variants or CASCADE not in manifest.variants:
        left_out = "no second model is taken: with one the artifact would not keep its contract"
        return found.note if not found.variants else left_out
    if f"{CASCADE_FP32} (cuda)" in manifest.metrics:
        return found.note
    return f"{found.note}; a GPU loads the student alone, since none ran both here"


def _fp16_note(manifest: Manifest) -> str:
    """That fp16 is there and a GPU does not load it; "" where there is nothing to say."""
    if "fp16" not in manifest.variants or manifest.providers[CUDA_PROVIDER] != "fp32":
        return ""
    return "fp16 was not run on a GPU here, so that a GPU loads fp32; KDC_VARIANT=fp16 takes it all the same"


def _lineage(run: Run) -> Lineage:
    """Teacher, student, recipe, data, versions and machine of a run."""
    config, data = run.config, run.data()
    student = run.student.model
    cut_from = "finetuned" if config.teacher.finetuned else config.student.cut_from
    if config.teacher.scores is not None:
        cut_from = "pretrained"
    return Lineage(
        teacher=_teacher_name(config.teacher),
        student=_student_name(student, cut_from) + _vocabulary(run),
        recipe=config.run.recipe,
        data_fingerprint=run.fingerprints["data"],
        seed=config.run.seed,
        packages=machine.versions(_PACKAGES),
        cpu=machine.cpu().model,
        gpu=gpu_name(run.device),
        trained=_trained(run),
        label_share=label_share(np.asarray(data.rows("train")["label"][:]), data.task),
    )


def _trained(run: Run) -> str:
    """In what number format and with how many threads the student was trained."""
    training = run.result(StudentResult).training
    if training is None or training.precision is None:
        return ""
    threads = "" if training.threads is None else f", {training.threads} thread{'s' if training.threads > 1 else ''}"
    return training.precision + threads


def label_share(labels: NDArray[np.generic], task: Task) -> tuple[float, ...] | None:
    """The share of the training rows that carry each label, so that a service can tell when its answers drift; None
    for regression. Labels are (rows,), or (rows, outputs) for multi-label."""
    if task.kind == "regression":
        return None
    if task.kind == "classification":
        labels = labels[:, None] == np.arange(task.outputs)
    return tuple(np.asarray(labels, dtype=np.float64).mean(axis=0).round(6).tolist())


def _student_name(student: str, cut_from: str) -> str:
    if student == UNCUT:
        return UNCUT_NAME
    return f"{student} of the {cut_from} teacher" if is_of_teacher(student) else _public_name(student)


def _vocabulary(run: Run) -> str:
    """How many pieces a smaller vocabulary has, in words; "" where the student has the teacher's."""
    return "" if run.vocabulary is None else f", with {len(read_kept(run.vocabulary))} pieces of its vocabulary"


def _teacher_name(settings: TeacherSettings) -> str:
    if settings.scores is not None:
        return f"a black box ({settings.scores.name})"
    return " + ".join(_public_name(source) for source in settings.sources)


def _base_models(run: Run) -> list[str]:
    """Hub ids of the models whose weights the artifact's are made of; none of models that have no id."""
    student = run.student.model
    made_of = [run.config.teacher.model] if is_of_teacher(student) else [student]
    names = [_public_name(name) for name in made_of if name == "minilm" or not Path(name).exists()]
    return [name for name in names if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)]


def _hub_dataset(run: Run) -> tuple[str, str, str] | None:
    """Hub id, configuration and split of the evaluation rows, where they came from the hub itself."""
    task, data = run.data().task, run.config.data
    if not task.hub_config or data.data is not None or data.train is not None:
        return None
    return HUB_NAME, task.hub_config, task.eval_splits[0]


def _public_name(model: str) -> str:
    """An id as it is, a local path as its last part: the artifact says nothing of the machine's folders."""
    if model == "minilm":
        return HUB_ID
    return Path(model).name if Path(model).exists() else model


def _new_name(path: Path) -> Path:
    """The path, or with a number where there is one already: an artifact that may be in use is never touched."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _point(link: Path, target: Path) -> None:
    """Make the symlink point at the new artifact in one step: a reader finds the old one or the new one."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent), target_is_directory=True)
    os.replace(temporary, link)


def _example(task: TaskInfo) -> str:
    """Arguments for `kdc try`, quoted for a shell."""
    texts = [task.text] + ([task.text_pair] if task.text_pair else [])
    if task.name == "pydocs":
        texts = [
            "What does `shutil.copytree` do?",
            "Recursively copy a directory tree and return the destination directory.",
        ]
    return shlex.join(texts)
