"""The grid of `benchmarks/study.py` and its pools, without a training; and a small study for real."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from live import ROOT

import kdc
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.resolve import resolve

sys.path.insert(0, str(ROOT))

from benchmarks import study
from benchmarks.study import SHARED, Grid, figures_of, local_pool, ray_pool, run_study
from benchmarks.study_tables import Figures, Outcome


def grid(out: Path, **changes: Any) -> Grid:
    given: dict[str, Any] = {"tasks": ("pydocs",), "families": ("minilm",), "methods": ("fft", "kd-lora", "tfidf")}
    return Grid(**(given | {"ranks": (8,), "seeds": (1,), "out": out} | changes))


def at_once(function: Callable[..., Any], *given: Any) -> "Future[Any]":
    """A pool that works in this process."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*given))
    except KdcError as error:
        future.set_exception(error)
    return future


def made_up(call: dict[str, Any], method: str, teacher: str | None) -> dict[str, dict[str, Any]]:
    """In place of `measure`: the run directory that a call leaves, and what it returns."""
    out = Path(call["run"]["out"])
    for stage in (*SHARED, "student"):
        (out / stage).mkdir(parents=True, exist_ok=True)
    if method == "lora":
        raise InputError("no such layers", given="nothing")
    return {method: {"scores": {"accuracy": 90.0}}} | ({"tfidf": {"scores": {"accuracy": 80.0}}} if not teacher else {})


def failures(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.cell.method: outcome.failure.partition("\n")[0] for outcome in outcomes}


def test_a_rank_has_twice_as_much_alpha_and_the_lora_teacher_has_the_students_adapters(tmp_path: Path) -> None:
    ranked = grid(tmp_path, methods=("kd-lora", "lora"), ranks=(4, 32), sets=("student.lora.targets=query",))
    configs = [resolve(flags=ranked.call(cell), sets={}, file={}) for cell in ranked.cells()]
    made = [config.student.lora for config in configs[:2]] + [config.teacher.lora for config in configs[2:]]
    assert [(lora.r, lora.alpha) for lora in made] == [(4, 8), (32, 64)] * 2
    assert {(lora.targets, lora.dropout) for lora in made} == {(("query",), 0.1)}  # the dropout of recipe `paper`


def test_a_method_of_adapters_needs_a_student_that_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "measure", lambda *given: pytest.fail("the teacher was trained before"))
    with pytest.raises(InputError, match="no adapters"):
        run_study(grid(tmp_path, sets=("student.model=conv",)), at_once, print)


def test_a_cell_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "measure", made_up)
    made = run_study(grid(tmp_path, methods=("lora", "kd-lora", "probe", "tfidf")), at_once, print)
    assert failures(made) == {
        "lora": "no such layers",
        "kd-lora": "",
        "probe": "the run has no such baseline",
        "tfidf": "",
    }


def test_without_their_teacher_all_cells_fail_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: dict[str, Any], method: str, teacher: str | None) -> None:
        raise InputError(f"no {method}")

    monkeypatch.setattr(study, "measure", fail)
    assert failures(run_study(grid(tmp_path), at_once, print)) == dict.fromkeys(("fft", "kd-lora", "tfidf"), "no fft")


def test_finished_cells_are_done_again_only_for_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "measure", made_up)
    lines: list[str] = []
    first = run_study(grid(tmp_path), at_once, lines.append)
    assert run_study(grid(tmp_path, ranks=(8, 4)), at_once, lines.append)[:2] == first[:2]
    run_study(grid(tmp_path, methods=("kd-lora",), sets=("student.epochs=9",)), at_once, lines.append)
    names = [line.partition(":")[0].removeprefix("pydocs minilm ") for line in lines]
    assert names == ["fft seed 1", "kd-lora r8 seed 1", "kd-lora r4 seed 1", "fft seed 1", "kd-lora r8 seed 1"]


def test_what_others_need_of_a_finished_cell_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "measure", made_up)
    run_study(grid(tmp_path), at_once, print)
    kept = {folder.name for folder in (tmp_path / "runs" / "pydocs" / "minilm" / "seed-1" / "fft").iterdir()}
    assert kept == set(SHARED)
    assert list((tmp_path / "runs" / "pydocs" / "minilm" / "seed-1" / "kd-lora-r8").iterdir()) == []


def test_figures_are_of_the_run_and_a_gpus_memory_is_its_own() -> None:
    row = {
        "accuracy": 90.0,
        "accuracy_mismatched": 89.0,
        "rows_per_second": 250.0,
        "parameters": 7,
        "latency_p50_ms": 1,
    }
    training = {"constant": True, "seconds": 3.0, "trainable_parameters": 2}
    made = Figures({"accuracy": 90.0, "accuracy_mismatched": 89.0}, True, 4.0, 3.0, 7, 2, 10)
    assert Figures(**figures_of("mnli", row, training, 10)) == made
    assert figures_of("mnli", row, training | {"peak_memory_bytes": 20}, 10)["peak_memory_bytes"] == 20
    assert Figures(**figures_of("mnli", {"accuracy": 90.0}, {})) == Figures({"accuracy": 90.0})


def test_a_killed_process_takes_no_other_cell_with_it() -> None:
    with local_pool(1) as submit:
        killed, whole = submit(os._exit, 9), submit(len, "abc")
        assert killed.exception() is not None
        assert whole.result() == 3


@pytest.fixture
def ray() -> Iterator[Callable[..., "Future[Any]"]]:
    pytest.importorskip("ray", reason="needs Ray: pip install 'kdc[ray]'")
    with ray_pool(None, 1, "cpu") as submit:
        yield submit


@pytest.mark.ray
def test_ray_gives_the_figures_and_the_reasons_of_a_local_pool(
    ray: Callable[..., "Future[Any]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(call: dict[str, Any], method: str, teacher: str | None) -> Any:  # a worker has no module of the tests
        from pathlib import Path

        from kdc.common.errors import InputError

        Path(call["run"]["out"]).mkdir(parents=True)
        if method == "lora":
            raise InputError("no such layers", given="nothing")
        if method == "student-lora":
            os._exit(9)
        return {method: {"scores": {"accuracy": 90.0}}}

    monkeypatch.setattr(study, "measure", alone)
    made = run_study(grid(tmp_path, methods=("fft", "lora", "kd-lora", "student-lora")), ray, print)
    assert made[0].figures == made[2].figures == Figures({"accuracy": 90.0})
    assert made[1].failure == "no such layers\n  given: nothing"
    assert made[3].failure


# A small study for real: what every method trains and measures.

TRAINED = ("fft", "lora", "kd-lora", "student-lora", "student-fft")


def write_glue(folder: Path) -> Path:
    """SST-2 in GLUE's layout: whether a sentence holds w1 or w2."""
    task = folder / "SST-2"
    task.mkdir(parents=True)
    for name, count, seed in (("train", 500, 1), ("dev", 60, 2)):
        rows = tiny_runs.write_rows(folder / "rows.csv", count, seed=seed, label=lambda yes, _: "1" if yes else "0")
        lines = [line.rsplit(",", 2) for line in rows.read_text().splitlines()[1:]]
        text = "".join(f"{first}\t{label}\n" for first, _, label in lines)
        (task / f"{name}.tsv").write_text(f"sentence\tlabel\n{text}")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    folder = tmp_path_factory.mktemp("study")
    sets = (
        *tiny_runs.QUICK,
        "run.recipe=best",
        "baselines.enabled=true",
        f"data.data={write_glue(folder / 'glue')}",
        f"teacher.model={tiny_runs.base_model('bert', folder / 'teacher')}",
        "student.model=layers:first-half",
    )
    return Grid(("sst2",), ("minilm",), (*TRAINED, "tfidf"), (4,), (1,), folder / "out", sets)


@pytest.fixture(scope="module")
def skipped() -> dict[str, bool]:
    """By method, whether its call found the teacher finished."""
    return {}


@pytest.fixture(scope="module")
def figures(small: Grid, skipped: dict[str, bool]) -> dict[str, Figures]:
    compress = kdc.compress

    def watched(**given: Any) -> Any:
        made = compress(**given)
        skipped[Path(given["run"]["out"]).name] = made.stages["teacher"].skipped
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdc, "compress", watched)
        made = run_study(small, at_once, print)
    assert [outcome.failure for outcome in made] == [""] * len(made)
    return {outcome.cell.method: outcome.figures for outcome in made if outcome.figures is not None}


@pytest.mark.slow
def test_every_method_learns(figures: dict[str, Figures]) -> None:
    for method, each in figures.items():
        assert each.scores["accuracy"] > 75, method
        assert not each.collapsed


@pytest.mark.slow
def test_methods_train_what_they_are_named_for(figures: dict[str, Figures]) -> None:
    trained = {method: figures[method].trainable_parameters or 0 for method in TRAINED}
    whole = {method: figures[method].parameters or 0 for method in TRAINED}
    assert trained["fft"] == whole["fft"] == whole["lora"]
    assert trained["student-fft"] == whole["student-fft"] == whole["kd-lora"] == whole["student-lora"]
    assert trained["kd-lora"] == trained["student-lora"] < whole["kd-lora"] < whole["fft"]
    assert trained["lora"] < whole["lora"]


@pytest.mark.slow
def test_every_cell_tells_its_costs_and_a_baseline_has_none(figures: dict[str, Figures]) -> None:
    for method in TRAINED:
        assert (figures[method].peak_memory_bytes or 0) > 1e8
        assert (figures[method].seconds or 0) > 0
        assert (figures[method].inference_s_per_1000_rows or 0) > 0
    assert replace(figures["tfidf"], scores={}) == Figures({})


@pytest.mark.slow
def test_the_teacher_is_trained_once_for_all(figures: dict[str, Figures], skipped: dict[str, bool]) -> None:
    expected = {"fft": False, "lora-r4": False, "kd-lora-r4": True, "student-lora-r4": True, "student-fft": True}
    assert skipped == expected


@pytest.mark.slow
def test_a_cell_in_a_process_has_the_figures_of_one_in_this(
    small: Grid, figures: dict[str, Figures], tmp_path: Path
) -> None:
    with local_pool(1) as submit:
        made = run_study(replace(small, methods=("fft", "kd-lora"), out=tmp_path), submit, print)
    for outcome in made:
        assert outcome.figures is not None, outcome.failure
        assert outcome.figures.scores == figures[outcome.cell.method].scores
