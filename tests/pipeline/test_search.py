"""Before training, students that cannot keep the contract are dropped; by short trainings the others are ranked."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import base_model, compress, config_for, kdc, write_rows

from kdc.artifact.contract.terms import Contract, Costs, Limits
from kdc.artifact.folder import load_manifest
from kdc.common import machine
from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import KINDS
from kdc.pipeline.config.training_settings import StudentSettings
from kdc.pipeline.models import possible_cuts
from kdc.pipeline.models.cutting import Cut
from kdc.pipeline.models.loading import load_config
from kdc.pipeline.quality.feasibility import fitting_students
from kdc.pipeline.report.page import write_report
from kdc.pipeline.report.plots import short_name
from kdc.pipeline.results.training import (
    CandidatesResult,
    History,
    ModelResult,
    SearchResult,
    StudentCosts,
    TeacherResult,
    TrainingSummary,
    Trial,
)
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.record import read_result
from kdc.pipeline.stages import candidates, search

pytestmark = pytest.mark.slow

# Sizes of a graph grow with its layers, so that a limit on the size cuts between depths.
DEEP = ("layers:0,1,2,4", "layers:0,1,4", "layers:0,4", "layers:4")
WITHOUT = ("conv", "static", "linear")
ALL = ("teacher", *DEEP, *WITHOUT)
QUICK = [*DEEP[:3], "linear", "conv", "static"]  # what a quick search tries, in order

HALF_WIDTH = possible_cuts.half_width


@pytest.fixture(scope="module", autouse=True)
def whole_layers() -> Iterator[None]:
    """Narrower students would take twice as long again; one test has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(possible_cuts, "half_width", lambda teacher: Cut(()))
        yield


class Rows:
    """Data and a teacher of five layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = base_model("bert", folder / "teacher", num_hidden_layers=5)
        write_rows(folder / "train.csv", 320, seed=1)
        write_rows(folder / "eval.csv", 100, seed=2)

    def config(self, out: Path, *sets: str, **limits: Any) -> Config:
        flags = {f"contract.{name}": value for name, value in limits.items()} | {"run.out": out}
        return config_for(self.folder, self.teacher, *sets, flags=flags)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def ready(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose students are measured and whose teacher has answered. Not to be changed: copy it first."""
    out = tmp_path_factory.mktemp("ready") / "run"
    compress(rows.config(out, max_size_mb=100.0), until="targets")
    return out


@pytest.fixture
def run(ready: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(ready, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def sizes(ready: Path) -> dict[str, dict[str, float]]:
    """MB of each student by precision, as the stage measures them."""
    students = read_result(ready, CandidatesResult).candidates
    assert tuple(students) == ALL
    return {
        name: {precision: costs.size_mb for precision, costs in student.variants.items() if isinstance(costs, Costs)}
        for name, student in students.items()
    }


def test_every_depth_and_precision_is_measured_untrained(sizes: dict[str, dict[str, float]]) -> None:
    assert [sorted(each) for each in sizes.values()] == [["fp32", "int8"]] * len(ALL)
    for name in ("fp32", "int8"):
        by_depth = [sizes[student][name] for student in ("teacher", *DEEP)]
        assert by_depth == sorted(by_depth, reverse=True)


def test_students_that_are_too_large_are_dropped(rows: Rows, sizes: dict[str, dict[str, float]], run: Path) -> None:
    limit = min(sizes[DEEP[0]].values()) - 1e-4  # just less than the deepest in its smallest form
    compress(rows.config(run, max_size_mb=limit), until="candidates")
    measured = read_result(run, CandidatesResult).candidates
    fitting = fitting_students(measured, Contract(limits=Limits(max_size_mb=limit)))
    assert fitting == [student for student in ALL[1:] if min(sizes[student].values()) <= limit]
    assert not {"teacher", DEEP[0]} & set(fitting)


def test_an_impossible_contract_is_refused_before_anything_is_trained(
    rows: Rows, sizes: dict[str, dict[str, float]], run: Path
) -> None:
    for stage in ("teacher", "targets"):
        shutil.rmtree(run / stage)
    with pytest.raises(InputError, match="nothing was trained") as caught:
        compress(rows.config(run, max_size_mb=0.001))
    smallest = min(sizes, key=lambda student: min(sizes[student].values()))
    assert f"the nearest is {smallest} in int8" in str(caught.value)
    assert not (run / "teacher").exists()


def test_a_refusal_leaves_the_run_before_it_whole_and_measures_again_the_next_time(
    rows: Rows, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count: list[str] = []

    def counted(run: Run, settings: StudentSettings, **rest: Any) -> StudentCosts:
        count.append(settings.model)
        return StudentCosts(parameters=1, variants={"fp32": Costs(latency_ms=1, rows_per_s=1, size_mb=1)})

    monkeypatch.setattr(candidates, "_measure", counted)
    with pytest.raises(InputError, match="nothing was trained"):
        compress(rows.config(run, max_size_mb=0.001), until="candidates")
    assert count == []
    assert tuple(read_result(run, CandidatesResult).candidates) == ALL  # what a report of the run before it reads
    with pytest.raises(InputError, match="nothing was trained"):
        compress(rows.config(run, max_size_mb=0.001), until="candidates")
    for _ in range(2):
        compress(rows.config(run, max_size_mb=100.0), until="candidates")
    assert count == 2 * list(ALL)


def test_another_limit_measures_nothing_again(rows: Rows, run: Path) -> None:
    again = compress(rows.config(run, max_size_mb=99.0), until="candidates")
    assert again.stages["candidates"].skipped
    named = rows.config(run, "student.model=layers:0", max_size_mb=99.0)
    assert not compress(named, until="candidates").stages["candidates"].skipped


def test_without_int8_only_fp32_can_keep_a_contract(rows: Rows, tmp_path: Path) -> None:
    config = rows.config(tmp_path / "run", "quantize.enabled=false", "student.model=layers:0", max_size_mb=100.0)
    compress(config, until="candidates")
    assert list(read_result(tmp_path / "run", CandidatesResult).candidates["layers:0"].variants) == ["fp32"]


def test_the_command_line_leaves_with_2_from_an_impossible_contract(rows: Rows, tmp_path: Path) -> None:
    done = kdc(
        "compress",
        "--train",
        str(rows.folder / "train.csv"),
        "--eval",
        str(rows.folder / "eval.csv"),
        "--text",
        "first",
        "--label",
        "label",
        "--teacher",
        str(rows.teacher),
        "--out",
        str(tmp_path / "run"),
        "--student",
        "layers:4",
        "--max-latency-ms",
        "0.00001",
    )
    assert done.returncode == 2
    assert "nothing was trained" in done.stderr
    assert "dropped: p95 latency" in done.stderr


def test_a_drop_alone_measures_and_searches_nothing(rows: Rows, tmp_path: Path) -> None:
    assert not rows.config(tmp_path, max_drop=1.0).measures_first


def test_who_names_a_student_gets_that_one(rows: Rows, tmp_path: Path) -> None:
    config = rows.config(tmp_path, "student.model=layers:1", max_size_mb=1.0)
    assert candidates.students_of(config) == ["layers:1"]


def test_a_cut_is_known_by_its_layers_numbers(rows: Rows, tmp_path: Path) -> None:
    """The report counts them."""
    config = rows.config(tmp_path, "student.model=layers:first-half", max_size_mb=1.0)
    (name,) = candidates.students_of(config)
    assert name == "layers:0,1"
    assert short_name(name) == "2 layers"
    assert short_name(f"{name},ffn=768") == "2 layers, ffn 768"
    assert short_name(f"{name},ffn=768,heads=6") == "2 layers, ffn 768, heads 6"


def test_a_students_own_checkpoint_stands_before_the_cuts(rows: Rows, tmp_path: Path) -> None:
    config = rows.config(tmp_path, "student.model=somewhere", "contract.search=full", max_size_mb=1.0)
    assert candidates.students_of(config) == ["somewhere", *ALL]


def test_a_cut_that_is_named_is_a_candidate_of_a_search_that_is_asked_for(rows: Rows, tmp_path: Path) -> None:
    config = rows.config(tmp_path, "student.model=layers:1,3", "contract.search=full", max_size_mb=1.0)
    assert candidates.students_of(config) == ["layers:1,3", *ALL]


def test_narrower_layers_are_candidates(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(possible_cuts, "half_width", HALF_WIDTH)
    config = rows.config(tmp_path, max_size_mb=1.0)
    half = load_config(str(rows.teacher)).intermediate_size // 2
    depths = ("0,1,2,3,4", "0,1,2,4", "0,1,4", "0,4", "4")
    narrow = [f"layers:{layers},ffn={half}{heads}" for heads in ("", ",heads=1") for layers in depths]
    assert candidates.students_of(config) == ["teacher", *DEEP, *narrow, *WITHOUT]
    monkeypatch.setattr(possible_cuts, "half_width", lambda teacher: Cut((), ffn=half))  # as MPNet
    assert candidates.students_of(config) == ["teacher", *DEEP, *narrow[:5], *WITHOUT]


def test_around_a_student_without_layers_others_without_are_searched(rows: Rows, run: Path) -> None:
    config = rows.config(run, "student.model=conv:window=5", "contract.search=full", max_size_mb=1.0)
    assert candidates.students_of(config) == ["conv:window=5", "teacher", *WITHOUT]


def test_a_teacher_of_one_layer_has_candidates(tmp_path: Path) -> None:
    base_model("bert", tmp_path / "teacher", num_hidden_layers=1)
    config = config_for(tmp_path, tmp_path / "teacher", flags={"contract.max_size_mb": 1.0})
    assert candidates.students_of(config) == ["layers:0", "teacher", *WITHOUT]


def test_rows_longer_than_the_students_take_are_refused_before_training(rows: Rows, tmp_path: Path) -> None:
    config = rows.config(tmp_path / "run", "contract.at.length=512", max_drop=1.0)
    with pytest.raises(InputError, match="length is more than the model takes"):
        compress(config)
    assert not (tmp_path / "run" / "teacher").exists()


def test_another_machine_measures_again(rows: Rows, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = rows.config(run, "student.model=layers:0", max_size_mb=100.0)
    assert not compress(config, until="candidates").stages["candidates"].skipped
    assert compress(config, until="candidates").stages["candidates"].skipped
    other = machine.cpu().model_copy(update={"model": "Another CPU 9000"})
    monkeypatch.setattr(machine, "cpu", lambda: other)
    assert not compress(config, until="candidates").stages["candidates"].skipped


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Trials that train nothing, and a teacher that is worse than any student; what would be trained, in order."""
    monkeypatch.setattr(search, "_FIRST_STEPS", 8)
    uncut = Trial(student="teacher", steps=0, parameters=9, score=-1.0, seconds=0.0)
    monkeypatch.setattr(search, "_uncut", lambda *_: uncut)
    trained: list[tuple[str, int]] = []

    def noted(student: StudentSettings, *_: Any, **__: Any) -> ModelResult:
        trained.append((student.model, student.min_steps))
        training = TrainingSummary(
            best_score=50.0,
            best_step=1,
            steps=student.min_steps,
            rows_per_second=1.0,
            seconds=1.0,
            trainable_parameters=1,
            history=History(loss=[], score=[], tune_loss=[]),
            learning_rate=1e-3,
            head_learning_rate=1e-3,
            precision="fp32",
        )
        scores = {"tune": {"macro_f1": 50.0}, "majority": {"macro_f1": 0.0}}
        return ModelResult(**scores, constant=False, chance=0.001, parameters=1, training=training)

    monkeypatch.setattr(search, "distil", noted)
    return trained


def test_halving_trains_the_survivors_twice_as_long_and_the_winner_becomes_the_student(
    rows: Rows, run: Path, short: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the longer training the order turns: what counts is the last one.
    scores = {
        (DEEP[0], 8): 70.0,
        (DEEP[1], 8): 90.0,
        (DEEP[2], 8): 80.0,
        (DEEP[3], 8): 60.0,
        ("linear", 10): 30.0,
        ("conv", 16): 50.0,  # as large a part of a training that is twice as long
        ("static", 16): 40.0,
        (DEEP[1], 16): 81.0,
        (DEEP[2], 16): 85.0,
        (DEEP[0], 16): 75.0,
    }
    distil = vars(search)["distil"]

    def scored(student: StudentSettings, *rest: Any, **named: Any) -> ModelResult:
        score = scores[student.model, student.min_steps]
        return distil(student, *rest, **named).model_copy(update={"tune": {"macro_f1": score}})

    monkeypatch.setattr(search, "distil", scored)
    compress(rows.config(run, "contract.search=full", max_size_mb=100.0), until="student")
    assert short == list(scores)
    base = json.loads((run / "student" / "base" / "config.json").read_text())
    assert base["num_hidden_layers"] == 2
    assert [trial.score for trial in read_result(run, SearchResult).trials] == [*scores.values(), -1.0]


def test_the_quick_search_tries_the_three_largest_with_layers_and_those_without(
    rows: Rows, run: Path, short: list[tuple[str, int]]
) -> None:
    """Once each. Would catch kinds that no quick search ever finds, as on a task where a bag of vectors is best."""
    compress(rows.config(run, max_size_mb=100.0), until="search")
    assert short == [*((student, 8) for student in DEEP[:3]), ("linear", 10), ("conv", 16), ("static", 16)]


def test_the_best_of_a_quick_search_gets_the_full_training_whatever_its_kind(
    rows: Rows, run: Path, short: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    distil = vars(search)["distil"]

    def scored(student: StudentSettings, *rest: Any, **named: Any) -> ModelResult:
        score = 90.0 if student.model == "static" else 80.0
        return distil(student, *rest, **named).model_copy(update={"tune": {"macro_f1": score}})

    monkeypatch.setattr(search, "distil", scored)
    compress(rows.config(run, max_size_mb=100.0), until="search")
    assert read_result(run, SearchResult).student == "static"


def test_a_full_training_that_is_short_still_has_its_students_compared(
    rows: Rows, run: Path, short: list[tuple[str, int]]
) -> None:
    short_training = ("student.min_steps=5", "student.epochs=0.1", "student.evaluations=1")
    compress(rows.config(run, *short_training, max_size_mb=100.0), until="search")
    assert short[:3] == [(student, 5) for student in DEEP[:3]]


def test_a_training_of_epochs_alone_has_trials_too(rows: Rows, run: Path, short: list[tuple[str, int]]) -> None:
    compress(rows.config(run, "student.min_steps=0", max_size_mb=100.0), until="search")
    assert short[:3] == [(student, 8) for student in DEEP[:3]]


def test_other_limits_and_more_time_repeat_no_trial(
    rows: Rows, run: Path, short: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped:
        stopped.setattr(search, "_is_out_of_time", lambda trials, max_hours: len(trials) == 2)
        compress(rows.config(run, max_size_mb=100.0, max_hours=1.0), until="search")
    compress(rows.config(run, max_size_mb=99.0, max_hours=2.0), until="search")
    assert [student for student, _ in short] == QUICK
    compress(rows.config(run, "student.learning_rate=2e-2", max_size_mb=99.0), until="search")
    assert [student for student, _ in short[len(QUICK) :]] == list(DEEP[:3])  # the others have rates of their own
    compress(rows.config(run, "student.learning_rate=2e-2", max_size_mb=99.0), until="search", start_from="search")
    assert len(short) == 3 * len(QUICK) - 3


def test_the_flag_for_more_time_repeats_no_trial_and_trains_no_teacher_again(
    rows: Rows, run: Path, short: list[tuple[str, int]]
) -> None:
    """Catches hours that count as another training: the flag sets those of teacher and student too."""
    compress(rows.config(run, max_size_mb=100.0), until="search")
    more = ("teacher.hours=2", "student.hours=2")
    stages = compress(rows.config(run, *more, max_size_mb=100.0, max_hours=2.0), until="search").stages
    assert stages["teacher"].skipped
    assert [student for student, _ in short] == QUICK


def test_a_search_that_is_cut_off_goes_on_where_it_was(
    rows: Rows, run: Path, short: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rows.config(run, max_size_mb=100.0)
    noted = vars(search)["distil"]

    def killed_at_the_third(*rest: Any, **named: Any) -> ModelResult:
        if len(short) == 2:
            raise KeyboardInterrupt
        return noted(*rest, **named)

    monkeypatch.setattr(search, "distil", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compress(config, until="search")
    monkeypatch.setattr(search, "distil", noted)
    compress(config, until="search")
    assert [student for student, _ in short] == QUICK


def test_a_search_out_of_time_takes_the_best_so_far(
    rows: Rows, run: Path, short: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = dict(zip(DEEP, (70.0, 90.0, 95.0), strict=False))
    distil = vars(search)["distil"]

    def scored(student: StudentSettings, *rest: Any, **named: Any) -> ModelResult:
        tune = {"macro_f1": scores[student.model]}
        return distil(student, *rest, **named).model_copy(update={"tune": tune})

    monkeypatch.setattr(search, "distil", scored)
    monkeypatch.setattr(search, "_is_out_of_time", lambda trials, max_hours: len(trials) == 2)
    compress(rows.config(run, max_size_mb=100.0, max_hours=1.0), until="search")
    result = read_result(run, SearchResult)
    assert [student for student, _ in short] == list(DEEP[:2])
    assert result.student == DEEP[1]
    assert "stopped" in result.headline


@pytest.mark.parametrize("best", [90.0, 90.1])
def test_the_uncut_teacher_is_taken_unless_a_student_is_better(
    rows: Rows, run: Path, monkeypatch: pytest.MonkeyPatch, best: float
) -> None:
    """Catches a teacher that is measured and never chosen, and one that wins whatever the students score."""

    def trial(run: Run, out: Path, student: str, steps: int) -> Trial:
        score = best if student == DEEP[2] else 80.0
        return Trial(student=student, steps=steps, parameters=1, score=score, seconds=0.0)

    monkeypatch.setattr(search, "short_training", trial)
    teacher = read_result(run, TeacherResult).model_copy(update={"tune": {"macro_f1": 90.0}})
    result = Run.result
    monkeypatch.setattr(Run, "result", lambda run, kind: teacher if kind is TeacherResult else result(run, kind))
    compress(rows.config(run, max_size_mb=100.0), until="search")
    found = read_result(run, SearchResult)
    assert found.student == ("teacher" if best == 90.0 else DEEP[2])
    assert found.trials[-1] == Trial(
        student="teacher",
        steps=0,
        parameters=read_result(run, CandidatesResult).candidates["teacher"].parameters,
        score=90.0,
        seconds=0.0,
    )


def test_a_cut_that_stands_alone_beside_the_teacher_has_a_score(
    tmp_path: Path, short: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a teacher that is taken because nothing was compared with it."""
    monkeypatch.setattr(candidates, "KINDS", {name: KINDS[name] for name in ("teacher", "layers")})
    base_model("bert", tmp_path / "teacher", num_hidden_layers=2)
    write_rows(tmp_path / "train.csv", 320, seed=1)
    write_rows(tmp_path / "eval.csv", 100, seed=2)
    config = config_for(tmp_path, tmp_path / "teacher", flags={"contract.max_size_mb": 100.0})
    compress(config, until="search")
    assert short == [("layers:1", 8)]
    assert read_result(tmp_path / "run", SearchResult).student == "layers:1"


def test_a_contract_that_only_a_narrow_student_keeps_ends_with_it(
    rows: Rows, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the artifact and the page. Would catch a search that measures such students and cannot make them."""
    monkeypatch.setattr(candidates, "students_of", lambda _: ["layers:4", "layers:4,ffn=9"])
    config = rows.config(run, max_size_mb=100.0)
    compress(config, until="candidates")
    measured = read_result(run, CandidatesResult).candidates
    whole, narrow = (measured[name].variants["fp32"] for name in ("layers:4", "layers:4,ffn=9"))
    assert isinstance(whole, Costs)
    assert isinstance(narrow, Costs)
    artifact = compress(rows.config(run, max_size_mb=(whole.size_mb + narrow.size_mb) / 2)).artifact
    assert artifact is not None
    assert {"fp32", "int8"} <= set(load_manifest(artifact).variants)
    assert json.loads((run / "student" / "base" / "config.json").read_text())["intermediate_size"] == 9
    write_report(run)
    assert "1 layer, ffn 9" in (run / "report.html").read_text(encoding="utf-8")


def assert_is_teacher(run: Path, artifact: Path) -> None:
    """Its logits are the teacher's, divided by the temperature."""
    temperature = load_manifest(artifact).fitted_temperature
    with np.load(run / "evaluate" / "logits.npz") as logits:
        assert np.abs(temperature * logits["eval/fp32"] - logits["eval/teacher"]).max() < 1e-4


def test_a_search_may_take_the_teacher_in_place_of_a_student_with_a_tokenizer_of_its_own(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the student's tokens, lengths or tokenizer for models that take the teacher's, in measuring, in a short
    training and in the end; and controls of a student that was not distilled."""
    student = base_model("mpnet", tmp_path / "student", num_hidden_layers=1)  # pads with 1, makes no token types
    sets = ("contract.search=full", "student.min_steps=4", "student.epochs=0.01", "student.evaluations=1")
    flags = {"student.model": str(student), "contract.max_size_mb": 100.0, "run.controls": True}
    config = config_for(rows.folder, rows.teacher, *sets, flags={"run.out": tmp_path / "run", **flags})
    monkeypatch.setattr(candidates, "students_of", lambda _: [str(student), "layers:0,ffn=9", "teacher"])
    uncut = Trial(student="teacher", steps=0, parameters=9, score=101.0, seconds=0.0)
    monkeypatch.setattr(search, "_uncut", lambda *_: uncut)
    result = compress(config)
    found = read_result(tmp_path / "run", SearchResult)
    assert found.student == "teacher"
    assert {trial.student for trial in found.trials} == {str(student), "layers:0,ffn=9", "teacher"}
    assert result.artifact is not None
    assert_is_teacher(tmp_path / "run", result.artifact)
    assert {"teacher_lora", "fp32"} <= set(result.metrics)
    assert "student_without_kd" not in result.metrics


@pytest.mark.parametrize("several", ["teacher.more", "teacher.scores"])
def test_only_one_teacher_with_weights_can_be_the_student(rows: Rows, run: Path, several: str, tmp_path: Path) -> None:
    """Also where the rows are there already: both kinds of teacher share them."""
    scores = tmp_path / "scores.csv"
    scores.write_text("no\n", encoding="utf-8")
    value = str(rows.teacher) if several == "teacher.more" else str(scores)
    config = config_for(
        rows.folder,
        rows.teacher,
        "student.model=teacher",
        flags={"run.out": run, several: value},
    )
    with pytest.raises(InputError, match="only if there is one"):
        compress(config, until="data")


def test_a_student_that_is_the_teacher_itself_ends_as_its_graph(rows: Rows, run: Path) -> None:
    """From stage `student` to the artifact: nothing is distilled, and what is served answers as the teacher does."""
    sets = ("student.model=teacher", "quantize.enabled=false", "export.teacher=true")
    result = compress(rows.config(run, *sets, max_drop=5.0))
    assert result.result is not None
    assert result.result.contract is not None
    assert result.result.contract.verdict == "pass"
    assert result.artifact is not None
    assert_is_teacher(run, result.artifact)
    with np.load(run / "evaluate" / "logits.npz") as logits:
        assert "eval/teacher_fp32" not in logits.files  # it stands there as the student already
    assert not (run / "student" / "adapter").exists()
    assert load_manifest(result.artifact).lineage.student == "the teacher itself, uncut"


def test_time_is_up_when_the_trials_took_so_long() -> None:
    trials = [Trial(student="layers:0", steps=8, parameters=1, score=0.0, seconds=each) for each in (1000.0, 900.0)]
    assert not search._is_out_of_time(trials, None)
    assert not search._is_out_of_time(trials, 0.53)
    assert search._is_out_of_time(trials, 0.52)
