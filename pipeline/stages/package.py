"""Stage `package`: the artifact, which is the product.

Reads `data/`, `export/`, `quantize/`, `evaluate/`. Writes `artifacts/<fingerprint>/` whole or not at all, then points
the symlink `artifact` at it. One that fails its contract goes to `rejected/<fingerprint>/`, and no link names it.
"""

import json
import os
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, MANIFEST_NAME, Manifest, TaskInfo
from kdc.common.files import write_whole
from kdc.pipeline.config.graph_settings import ExportSettings
from kdc.pipeline.evaluation.answers import answers_of, look_of, tuning_of
from kdc.pipeline.evaluation.baseline_comparison import teacher_note
from kdc.pipeline.evaluation.second_model import CASCADE, CASCADE_FP32
from kdc.pipeline.evaluation.thresholds import decided_task
from kdc.pipeline.packaging.card import model_card
from kdc.pipeline.packaging.hugging_face import add_hugging_face_files, card_metadata
from kdc.pipeline.packaging.lineage import base_models, hub_dataset
from kdc.pipeline.packaging.manifest import ONNX_FILES, manifest_of, without_unused_cascades
from kdc.pipeline.quality.judging import judge_artifact, judged_device
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult, PackageResult, QuantizeResult
from kdc.pipeline.rundir.context import Run, read_tokenizer_info
from kdc.pipeline.rundir.files import EVALUATION, MADE_FROM, SETTINGS, TOKENIZER_JSON
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.pipeline.rundir.record import read_result


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
    """Make the artifact, judge it if there is a contract, and point `artifact` at it unless it failed.

    Raises:
        InputError: the tuning slice shows no threshold that keeps what was asked of decisions.
    """
    evaluated, quantized = run.result(EvaluateResult), run.result(QuantizeResult)
    for unfinished in (run.root / "artifacts").glob("*.tmp"):  # of a start that was cut off, or refused
        shutil.rmtree(unfinished, ignore_errors=True)
    working = run.root / "artifacts" / f"{run.fingerprints['package'][:16]}.tmp"
    working.mkdir(parents=True)
    _copy_files(run, working, with_int8=quantized.int8)
    manifest = manifest_of(run, working, evaluated.table, quantized)
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
    manifest = without_unused_cascades(working, manifest)
    notes.append(_cascade_note(run, manifest))
    example = _example(manifest.task)
    adapted = run.student.method == "lora"
    card = card_metadata(manifest, models=base_models(run), dataset=hub_dataset(run))
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
    for variant, (name, made_as) in ONNX_FILES.items():
        made = run.folder("quantize") / made_as if variant == "int8" else export / made_as
        if made.exists() and (variant != "int8" or with_int8):
            shutil.copyfile(made, target / name)
    shutil.copyfile(run.folder("evaluate") / EVALUATION, target / EVALUATION)
    if "hf" in run.config.export.formats:
        add_hugging_face_files(run.folder("merge") / "model", target, read_tokenizer_info(export))


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
    """Arguments for `kdc try`, quoted for a shell, on one line: the columns' names stand for texts."""
    texts = [" ".join(name.split()) for name in (task.text, task.text_pair) if name is not None]
    if task.name == "pydocs":
        texts = [
            "What does `shutil.copytree` do?",
            "Recursively copy a directory tree and return the destination directory.",
        ]
    return shlex.join(texts)
