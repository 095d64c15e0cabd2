"""Stage `search`: find the most accurate student within the contract by short trainings.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all train for a part of their full training, the
better half for twice as long, until one is left. A quick search tries fewer, in one round. Each trial has a whole
schedule. The uncut teacher, if it keeps the contract, wins unless a student scores higher on the tuning set.

Reads `data/`, `vocabulary/`, `candidates/`, `teacher/`, `targets/`. `search.kept/` keeps trials, also for other limits.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdc.common.files import write_whole
from kdc.common.progress import Progress
from kdc.pipeline.config.settings import ContractSettings
from kdc.pipeline.config.student_kinds import UNCUT, kind_of
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.quality.feasibility import fitting_students
from kdc.pipeline.results.training import CandidatesResult, SearchResult, TeacherResult, Trial
from kdc.pipeline.rundir import fingerprints
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import TEACHER_LOGITS
from kdc.pipeline.rundir.folders import kept_folder
from kdc.pipeline.training.callbacks import SECONDS_OF_AN_HOUR
from kdc.pipeline.training.finetuning import plan_for
from kdc.pipeline.training.students import StudentOrigin, distil, keep_teacher

_FIRST_STEPS = 400  # fewer rank early progress
_QUICK_SURVIVORS = 3  # with layers, and as many without


def depends_on(run: Run) -> dict[str, Any]:
    contract, kept = run.config.contract, _survivors(run)
    settings = {"search": contract.search, "max_hours": contract.max_hours, "kept": kept}
    fewer = [student for student in kept if not run.settings_of(student).has_all_pieces]
    return fingerprints.training(run.config, run.config.student) | settings | {"fewer_pieces": fewer}


def run(run: Run, out: Path) -> SearchResult:
    survivors, settings = _survivors(run), run.config.contract
    cuts = _first_tried([student for student in survivors if student != UNCUT], is_quick=settings.search == "quick")

    def train(student: str, steps: int) -> Trial:
        trial = short_training(run, out, student, steps)
        run.say(f"search: {student}, {trial.steps} steps: tuning set {trial.score:.1f}")
        return trial

    most = {student: steps_of_full_training(run, student) for student in cuts}
    winner, trials, stopped = UNCUT, list[Trial](), ""
    if cuts:
        winner, trials, stopped = _halve(most, train, settings, scored=UNCUT in survivors, progress=run.progress)
    headline = f"after {len(trials)} short trainings{stopped}"
    if UNCUT in survivors:
        teacher, origin = run.folder("teacher") / "model", run.origin_of(run.settings_of(UNCUT))
        parameters = run.result(CandidatesResult).candidates[UNCUT].parameters
        uncut = _uncut(teacher, run.result(TeacherResult).tune, parameters, run.data(), origin)
        run.say(f"search: the teacher itself: tuning set {uncut.score:.1f}")
        longest = [trial for trial in trials if trial.student == winner][-1:]
        if all(trial.score <= uncut.score for trial in longest):
            winner = UNCUT
        trials.append(uncut)
    return SearchResult(student=winner, trials=tuple(trials), headline=f"{winner}, {headline}")


def _first_tried(survivors: list[str], *, is_quick: bool) -> list[str]:
    if not is_quick:
        return survivors
    with_layers = [student for student in survivors if kind_of(student).has_layers]
    without = [student for student in survivors if not kind_of(student).has_layers]
    return with_layers[:_QUICK_SURVIVORS] + without[:_QUICK_SURVIVORS]


def _halve(
    most: Mapping[str, int],
    train: Callable[[str, int], Trial],
    settings: ContractSettings,
    *,
    scored: bool,
    progress: Progress,
) -> tuple[str, list[Trial], str]:
    """The winner, all trials, and why they ended early ("" if not).

    Args:
        most: steps of full trainings, largest student first.
        scored: train a single student too.
    """
    trials: list[Trial] = []
    survivors, is_quick, stopped = list(most), settings.search == "quick", ""
    share = first_share(most.values())
    while (len(survivors) > 1 or (scored and not trials)) and not stopped:
        scores: dict[str, float] = {}
        for student in survivors:
            if trials and _is_out_of_time(trials, settings.max_hours):
                stopped = f"; stopped after {settings.max_hours:g} hours"
                break
            trial = train(student, round(share * most[student]))
            trials.append(trial)
            scores[student] = trial.score
            progress(len(trials), len(trials) + 1)
        # Ties go to the larger, earlier student.
        ranked = sorted(scores, key=lambda student: -scores[student]) or survivors
        survivors = ranked[: 1 if is_quick or 2 * share > 1 else len(ranked) // 2] or ranked[:1]
        share *= 2
    return survivors[0], trials, stopped


def _survivors(run: Run) -> list[str]:
    contract = run.config.contract.terms
    assert contract is not None
    return fitting_students(run.result(CandidatesResult).candidates, contract)


def first_share(steps: Iterable[int]) -> float:
    return min(1.0, _FIRST_STEPS / min(steps))


def steps_of_full_training(run: Run, student: str) -> int:
    data, settings = run.data(), run.settings_of(student)
    role = run.role_of(settings)
    rows = sum(len(data.tokens(role, split)) for split in ("train", "unlabeled") if data.has(split))
    return plan_for(settings, rows, run.environment).steps


def short_training(run: Run, out: Path, student: str, steps: int) -> Trial:
    settings = run.settings_of(student).model_copy(
        update={"min_steps": steps, "epochs": 1e-3, "evaluations": 2, "patience": None, "hours": None}
    )
    depends_on = fingerprints.as_json(fingerprints.training(run.config, settings))
    name = fingerprints.fingerprint_of("trial", depends_on, [run.fingerprints["targets"]])[:16]
    record, work = kept_folder(run.root, "search") / f"{name}.json", out / f"{name}.work"
    if not record.exists():
        record.parent.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        began = time.monotonic()
        origin, logits = run.origin_of(settings), run.folder("targets") / TEACHER_LOGITS
        result = distil(settings, origin, run.data(), logits, work, run.environment, progress=run.progress)
        assert result.training is not None
        assert result.parameters is not None
        trial = Trial(
            student=student,
            steps=result.training.steps,
            parameters=result.parameters,
            score=result.tune[run.data().task.metrics[0]],
            seconds=round(time.monotonic() - began, 1),
        )
        write_whole(record, trial.model_dump_json())
    shutil.rmtree(work, ignore_errors=True)
    return Trial.model_validate_json(record.read_text(encoding="utf-8"))


def _uncut(
    teacher: Path, tune: Mapping[str, float], parameters: int, data: PreparedData, origin: StudentOrigin
) -> Trial:
    if origin.vocabulary is not None:
        result = keep_teacher(teacher, origin, data)
        tune, parameters = result.tune, result.parameters or parameters
    return Trial(student=UNCUT, steps=0, parameters=parameters, score=tune[data.task.metrics[0]], seconds=0.0)


def _is_out_of_time(trials: Sequence[Trial], max_hours: float | None) -> bool:
    return max_hours is not None and sum(trial.seconds for trial in trials) >= max_hours * SECONDS_OF_AN_HOUR
