"""Stage `cascade`: a second model for rows that the student is unsure of, if the pair gains.

kdc sends it as few tuning rows as the allowed loss permits. The pair must answer 10 % more rows a second than the
second model alone. Reads `data/`, `teacher/`, `targets/`, `export/`, `quantize/`, `uncut/`, or another run's artifact.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.folder import load_manifest
from kdc.pipeline.config import metrics
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData, texts_of
from kdc.pipeline.evaluation.evidence import score_to_keep
from kdc.pipeline.evaluation.second_model import SecondModel, copy_second, files_in, scaled, second_model
from kdc.pipeline.evaluation.variants import CASCADE, CASCADE_FP32, student_files
from kdc.pipeline.graphs.files import TOKENIZER_JSON, read_tokenizer_info
from kdc.pipeline.quality.calibration import calibrate
from kdc.pipeline.quality.cascading import curve, fewest
from kdc.pipeline.quality.latency import compare_speeds
from kdc.pipeline.results.artifact import CascadeResult, Pair, QuantizeResult
from kdc.pipeline.results.training import TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.serving.engine.deciding import sureness
from kdc.serving.engine.engine import activate

_LEAST_GAIN = 1.1
_NO = "no second model is taken: "


@dataclass(frozen=True)
class _Answers:
    logits: NDArray[np.floating]  # (rows, outputs)
    score: float  # in points
    temperature: float
    rows_per_second: float


def depends_on(run: Run) -> dict[str, Any]:
    settings, contract = run.config.cascade, run.config.contract
    second = settings.second
    return {
        "second": load_manifest(second, verify=False).sha256 if isinstance(second, Path) else "teacher",
        "max_drop": settings.max_drop,
        "contract": [contract.max_drop, contract.against],
        "rounds": run.config.evaluate.rounds,
        "rows": run.config.evaluate.throughput_rows,
        **this_machine(run.device),
    }


def run(run: Run, out: Path) -> CascadeResult:
    settings, data, contract = run.config.cascade, run.data(), run.config.contract.terms
    asked, second, source, name = settings.second, second_model(run), "teacher", UNCUT_NAME
    if isinstance(asked, Path):
        manifest = load_manifest(asked)
        copy_second(manifest, asked, out)
        second, source, name = SecondModel(out, second.entry, files_in(out)), manifest.sha256, manifest.lineage.student
    problem = _problem(data.task, run.folder("export"), second)
    if problem:
        return CascadeResult(second=name, source=source, note=problem, headline=problem)
    firsts, seconds = _answers(run, second)
    served = "int8" if "int8" in firsts else "fp32"
    teacher, comparison = (
        run.result(TeacherResult).tune[data.task.metrics[0]],
        run.result(TargetsResult).baseline_comparison,
    )
    bar = None
    if contract is not None and contract.limits.max_drop is not None:  # half is left for unseen rows
        bar = score_to_keep(comparison, teacher, contract.against) - contract.limits.max_drop / 2
    paired = partial(_pair, data, max_drop=settings.max_drop, bar=bar)
    pairs = [paired((served, firsts[served]), candidate) for candidate in seconds.items()]
    best = max(pairs, key=lambda pair: (pair.score >= (bar or 0.0), pair.rows_per_second))
    why_not = _why_not(best, max(answers.rows_per_second for answers in seconds.values()))
    note = why_not or (
        f"the student ({best.first}) sends {100 * best.share:.0f} % of the tuning set to the second model, {name} "
        f"({best.second})"
    )
    variants = {} if why_not else {CASCADE: best}
    if variants and run.device == "cuda":
        in_fp32 = paired(("fp32", firsts["fp32"]), ("fp32", seconds["fp32"]))
        variants |= {} if _why_not(in_fp32, seconds["fp32"].rows_per_second) else {CASCADE_FP32: in_fp32}
    return CascadeResult(second=name, source=source, best=best, variants=variants, note=note, headline=note)


def _problem(task: Task, exported: Path, second: SecondModel) -> str:
    if not task.traits.has_labels:
        return f"{_NO}a number does not tell how sure it is"
    if not second.files:
        return f"{_NO}there is no graph of the uncut teacher"
    folders = exported, second.folder
    infos = map(read_tokenizer_info, folders)
    own, theirs = ((folder / TOKENIZER_JSON).read_bytes() for folder in folders)
    length, other = ((info.max_length, info.long) for info in infos)
    return "" if (own, length) == (theirs, other) else f"{_NO}the student has another tokenizer"


def _answers(run: Run, second: SecondModel) -> tuple[dict[str, _Answers], dict[str, _Answers]]:
    data, settings, quantized = run.data(), run.config.evaluate, run.result(QuantizeResult)
    rows, task = data.rows("tune"), data.task
    texts, labels = texts_of(rows), np.asarray(rows["label"][:])
    with_int8 = quantized.chosen is not None
    firsts = student_files(run.folder("export"), run.folder("quantize"), with_int8=with_int8)
    engines = {f"first {name}": run.open_engine(file) for name, file in firsts.items()}
    for name, file in second.files.items():
        engines[f"second {name}"] = run.open_engine(file, exported=second.folder)
    logits = {}
    for done, (name, engine) in enumerate(engines.items(), 1):
        logits[name] = engine.logits(texts)
        run.progress(done, len(engines))
    speeds = compare_speeds(
        {name: engine.logits for name, engine in engines.items()},
        texts,
        latency_rows=10,  # batch speed counts here
        throughput_rows=settings.throughput_rows,
        rounds=settings.rounds,
    )
    answers: dict[str, dict[str, _Answers]] = {"first": {}, "second": {}}
    for name, answered in logits.items():
        whose, number_format = name.split()
        answers[whose][number_format] = _Answers(
            answered,
            metrics.compute(answered, labels, task.kind, task.metrics)[task.metrics[0]],
            quantized.temperature
            if whose == "first"
            else calibrate(answered, labels, task.kind, groups=data.groups("tune")),
            speeds[name].rows_per_second,
        )
    if "int8" in answers["second"]:  # as for students
        drop = answers["second"]["fp32"].score - answers["second"]["int8"].score
        if drop > run.config.quantize.max_int8_drop:
            del answers["second"]["int8"]
    return answers["first"], answers["second"]


def _pair(
    data: PreparedData,
    first: tuple[str, _Answers],
    second: tuple[str, _Answers],
    *,
    max_drop: float,
    bar: float | None,
) -> Pair:
    """The fewest rows go to the second model within a contract's `bar`, or else within `max_drop` points."""
    (_, one), (_, other) = first, second
    rows, task = data.rows("tune"), data.task
    sure = sureness(activate(one.logits, task.kind, one.temperature), task.info())
    logits = scaled(other.logits, other.temperature, one.temperature)
    wanted = other.score - max_drop if bar is None else min(bar, other.score)
    going = fewest(curve(one.logits, logits, sure, np.asarray(rows["label"][:]), task), wanted)
    seconds = 1 / one.rows_per_second + going.share / other.rows_per_second
    return Pair(
        first=first[0],
        second=second[0],
        temperature=other.temperature,
        answered_from=min(1.0, going.answered_from),
        share=round(going.share, 6),
        score=going.score,
        first_score=one.score,
        second_score=other.score,
        wanted=round(wanted, 4),
        rows_per_second=round(1 / seconds, 1),
        second_rows_per_second=other.rows_per_second,
    )


def _why_not(pair: Pair, alone: float) -> str:
    """`alone`: the second model's throughput."""
    if not pair.share:
        return (
            f"{_NO}the student alone scores {pair.first_score:.1f} on the tuning set, and {pair.wanted:.1f} is enough "
            f"(the second model {pair.second_score:.1f})"
        )
    if pair.rows_per_second < _LEAST_GAIN * alone:
        return (
            f"{_NO}{100 * pair.share:.0f} % of the rows would go to it, and the pair would answer "
            f"{pair.rows_per_second:.0f} rows a second; it alone answers {alone:.0f}"
        )
    return ""
