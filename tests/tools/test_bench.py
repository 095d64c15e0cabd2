"""`kdc bench`: what is measured, of whom, and what is refused. No figure is judged: a test's machine is busy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
import torch
from bag_models import write_artifact

from kdc.common.errors import InputError, KdcError
from kdc.tools.bench import run
from kdc.tools.bench.plot import check_format, draw
from kdc.tools.bench.profile import profiled, render_profiles
from kdc.tools.bench.result import BenchResult, render
from kdc.tools.bench.run import Case, Subject, parse_subject, run_bench
from kdc.tools.bench.subject_process import load

CASES = [Case(1, 4), Case(3, 8), Case(1, 500)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("bench") / "mood" / "artifact")


@pytest.fixture(scope="module")
def result(artifact: Path) -> BenchResult:
    subjects = [Subject("int8", artifact), Subject("fp32", artifact, "fp32")]
    return run_bench(subjects, CASES, rounds=3, seconds=0.01, device="cpu", threads=(1,))


def test_every_subject_has_its_turns_at_every_case_it_can_take(result: BenchResult) -> None:
    for subject in result.subjects:
        assert [(case.batch, case.tokens) for case in subject.cases] == [(1, 4), (3, 8)]  # 500 are too long
        for case in subject.cases:
            assert case.calls >= 3 * 5
            assert 0 < case.p50_ms <= case.p95_ms <= case.p99_ms
            assert case.rows_per_second > 0
            assert case.peak_share == 0  # a bag of words multiplies no matrices
        assert subject.cold_start_s > 0
        assert subject.peak_memory_bytes > 10e6


def test_the_first_subject_is_the_measure_of_the_others(result: BenchResult) -> None:
    first, second = result.subjects
    assert [case.against_first for case in first.cases] == [1.0, 1.0]
    assert all(case.against_first is not None and case.against_first > 0 for case in second.cases)


def test_the_result_says_what_ran_and_how(result: BenchResult) -> None:
    assert [subject.variant for subject in result.subjects] == ["int8", "fp32"]
    assert {subject.on for subject in result.subjects} == {"CPUExecutionProvider"}
    assert {subject.threads for subject in result.subjects} == {1}
    assert result.machine.cores.usable >= 1
    assert result.settings.rounds == 3


def test_several_numbers_of_threads_are_measured_side_by_side(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bug to catch: all of them run with the first number, or with all cores, under a name that says another.
    monkeypatch.setattr(run, "STARTS", 1)
    subjects = [Subject("int8", artifact), Subject("fp32", artifact, "fp32")]
    result = run_bench(subjects, [Case(1, 4)], rounds=1, seconds=0.01, device="cpu", threads=(1, 2))
    assert [(subject.name, subject.variant, subject.threads) for subject in result.subjects] == [
        ("int8, 1 thread", "int8", 1),
        ("int8, 2 threads", "int8", 2),
        ("fp32, 1 thread", "fp32", 1),
        ("fp32, 2 threads", "fp32", 2),
    ]


@pytest.mark.usefixtures("among_foreign_modules")
def test_a_subject_imports_nothing_from_the_callers_folder(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STARTS", 1)
    result = run_bench([Subject("a", artifact)], [Case(1, 4)], rounds=1, seconds=0.01, device="cpu", threads=(1,))
    assert [subject.name for subject in result.subjects] == ["a"]


@pytest.fixture(scope="module")
def hugging_face_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForSequenceClassification

    model = tiny_runs.base_model("bert", tmp_path_factory.mktemp("bench") / "model")
    AutoModelForSequenceClassification.from_pretrained(model).save_pretrained(model)
    return model


def test_a_hugging_face_model_is_timed_with_torch(hugging_face_model: Path) -> None:
    model = load(hugging_face_model, variant=None, device="cpu", threads=torch.get_num_threads())
    assert (model.about.runtime, model.about.on, model.about.longest) == ("torch", "cpu", 48)
    turn = model.time(batch=2, length=6, seconds=0.01)
    assert turn.tokens == 6
    assert sum(turn.ms) >= 10


def test_a_profile_has_every_node_of_a_pass_and_adds_up(result: BenchResult, artifact: Path) -> None:
    """Would catch warm-ups that count, calls counted once, and another variant's graph."""
    profiles = profiled(result).profiles
    cases = [(subject.name, case.batch, case.tokens) for subject in result.subjects for case in subject.cases]
    assert [(each.subject, each.rows, each.tokens) for each in profiles] == cases
    for profile in profiles:
        # A session folds constants and adds nothing, so these are the nodes of bag_models' graph.
        assert {each.operator: each.nodes for each in profile.operators} == {
            "Gather": 1,
            "Cast": 1,
            "Unsqueeze": 1,
            "Mul": 1,
            "ReduceSum": 1,
        }
        assert profile.ms == pytest.approx(sum(each.ms for each in profile.operators))
        assert [each.ms for each in profile.operators] == sorted((each.ms for each in profile.operators), reverse=True)
        assert (profile.gmacs_per_second, profile.share_of_products) == (0, 0)  # no product
    text = render_profiles(profiles)
    assert text.count("% of what matrix products alone reach now") == len(cases)


def test_only_a_cpu_and_an_artifact_are_profiled(result: BenchResult) -> None:
    first = result.subjects[0]
    for changes in ({"on": "cpu", "runtime": "torch", "variant": "float32"}, {"on": "CUDAExecutionProvider"}):
        other = result.model_copy(update={"subjects": (first.model_copy(update=changes),)})
        with pytest.raises(InputError, match="only int8 and fp32 on a CPU can be profiled"):
            profiled(other)


@pytest.mark.slow
def test_a_hugging_face_model_stands_beside_an_artifact(artifact: Path, hugging_face_model: Path) -> None:
    subjects = [Subject("student", artifact), Subject("teacher", hugging_face_model)]
    result = run_bench(subjects, [Case(2, 6)], rounds=1, seconds=0.01, device="cpu")
    assert [subject.runtime for subject in result.subjects] == ["onnxruntime", "torch"]
    assert [case.tokens for subject in result.subjects for case in subject.cases] == [6, 6]
    assert [case.peak_share for subject in result.subjects for case in subject.cases] == [0, None]


def test_a_subject_killed_in_the_middle_of_a_reply_is_told_as_lost(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread line\nprintf '{\"half'\nkill -9 $$\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr("kdc.tools.bench.run.sys.executable", str(python))
    with pytest.raises(KdcError, match=r"a subject's process ended(?s:.*)exit -9"):
        run_bench([Subject("int8", artifact)], CASES, rounds=1, seconds=0.01, device="cpu")


def test_the_text_and_the_pictures_show_every_case(result: BenchResult, tmp_path: Path) -> None:
    lines = render(result).splitlines()
    for subject in result.subjects:
        for case in subject.cases:
            assert any(
                line.split()[:3] == [str(case.tokens), str(case.batch), subject.name] and f"{case.p50_ms:.2f}" in line
                for line in lines
            )
    for ending in ("svg", "png"):
        draw(result, tmp_path / f"plot.{ending}")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_a_plot_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    for path in (tmp_path / "plot.docx", tmp_path / "nowhere" / "plot.svg"):
        with pytest.raises(InputError):
            check_format(path)


def test_subjects_are_named_for_their_folders(artifact: Path, tmp_path: Path) -> None:
    assert parse_subject(str(artifact)) == Subject("mood", artifact)
    assert parse_subject(f"{artifact}@fp32") == Subject("mood@fp32", artifact, "fp32")
    assert parse_subject(f"mine={artifact}@fp32") == Subject("mine", artifact, "fp32")
    (tmp_path / "a@b").mkdir()
    assert parse_subject(str(tmp_path / "a@b")) == Subject("a@b", tmp_path / "a@b")


def test_what_is_no_model_is_wrong_input(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        parse_subject(str(tmp_path / "nowhere"))
    for subjects, complaint in (
        ([Subject("empty", tmp_path)], "neither an artifact nor"),
        ([Subject("one", artifact, "fp8")], "no such variant"),
        ([Subject("one", artifact), Subject("one", artifact)], "same name"),
    ):
        with pytest.raises(InputError, match=complaint):
            run_bench(subjects, CASES, rounds=1, seconds=0.01)


def test_a_damaged_artifact_is_an_error_with_its_name(tmp_path: Path) -> None:
    damaged = write_artifact(tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"no model")
    with pytest.raises(KdcError, match=r"broken: .*model\.onnx|broken: "):
        run_bench([Subject("broken", damaged)], CASES, rounds=1, seconds=0.01)


def test_the_command_prints_one_json_object(artifact: Path) -> None:
    command = [sys.executable, "-m", "kdc", "bench", str(artifact), "--batch", "1", "--length", "4", "--rounds", "1"]
    done = subprocess.run([*command, "--seconds", "0.01", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["subjects"][0]["name"] == "mood"
    refused = subprocess.run([*command, "--length", "4,x"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
