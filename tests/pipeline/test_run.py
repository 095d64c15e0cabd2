"""Whole runs: what is skipped, resumed and redone, and that the artifact keeps what was learned."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from conftest import ALL_MODELS, Finished
from safetensors.torch import load_file

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import TokenizerInfo
from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.data.prepared import PreparedData, open_data
from kdc.pipeline.graphs import int8_trials
from kdc.pipeline.graphs.int8 import CANDIDATES
from kdc.pipeline.graphs.int8_choice import Standard
from kdc.pipeline.packaging.manifest import on_cuda
from kdc.pipeline.quality.peak_memory import ModelFiles, peak_memory_bytes
from kdc.pipeline.results.training import ControlsResult, ModelResult
from kdc.pipeline.rundir import folders
from kdc.pipeline.rundir.context import Run, open_run
from kdc.pipeline.rundir.files import CONTROLS
from kdc.pipeline.rundir.folders import Stage
from kdc.pipeline.rundir.record import StageRecord, read_result
from kdc.pipeline.stages import controls, evaluate, merge, uncut


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run's folder."""
    shutil.copytree(finished.folder / "run", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture
def instant(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that are redone hand on what the finished run's did: for tests of what is redone."""
    earlier = finished.folder / "run"

    def do(run: Run, stage: Stage, settings: dict, fingerprint: str, reporter: Reporter, why: str) -> StageRecord:
        shutil.copytree(earlier / stage.name, run.root / f"{stage.name}.partial", symlinks=True)
        record = json.loads((earlier / stage.name / "stage.json").read_text())
        record |= {"settings": settings, "fingerprint": fingerprint}
        (run.root / f"{stage.name}.partial" / "stage.json").write_text(json.dumps(record))
        return StageRecord(skipped=False, **record)

    monkeypatch.setattr(folders, "_do", do)


def again(
    finished: Finished, out: Path, *sets: str, how: dict | None = None, flags: dict | None = None
) -> dict[str, bool]:
    """Run once more in `out`; which stages were skipped."""
    config = tiny_runs.config_for(
        finished.folder,
        finished.teacher,
        *sets,
        flags={"run.out": out} | ALL_MODELS | (flags or {}),
    )
    result = tiny_runs.compress(config, **(how or {}))
    return {name: stage.skipped for name, stage in result.stages.items()}


@pytest.mark.slow
def test_where_int8_costs_something_more_is_tried_and_one_file_stays(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Standard, "is_free", lambda self, candidate: False)
    monkeypatch.setattr(int8_trials, "layers_by_worth", lambda *given: [frozenset({"/classifier/Gemm"})])
    again(finished, copied, "quantize.calibration_rows=33")
    tried = json.loads((copied / "quantize" / "candidates.json").read_text())
    more = {name: found for name, found in tried.items() if name not in {"fp32", *(each.name for each in CANDIDATES)}}
    assert [name.removeprefix("channel-") for name in more][:2] == ["entropy", "smooth-percentile"]
    assert [name[-7:] for name in more][2:] == ["-keep-1"]
    assert all(0 < found["tune"]["accuracy"] <= 100 and found["latency_p50_ms"] > 0 for found in more.values())
    assert sorted(path.name for path in (copied / "quantize").glob("*.onnx")) == ["model.int8.onnx"]


def test_teacher_and_student_learned_the_task(finished: Finished) -> None:
    table = finished.table
    assert table["teacher"]["accuracy"] > 90
    assert table["merged"]["accuracy"] > 90
    assert table["int8"]["accuracy"] > 85


def test_every_variant_and_control_is_in_the_table(finished: Finished) -> None:
    table = finished.table
    controls = {"student_without_kd", "student_without_kd_by_loss", "teacher_lora"}
    uncut = {"teacher_fp32", "teacher_int8"}
    assert set(table) == {"teacher", "student", "merged", "fp32", "int8", "fp16"} | controls | uncut
    for name in ("teacher", "merged", "fp32", "int8"):
        assert {"accuracy", "parameters", "size_bytes", "latency_p50_ms", "latency_p95_ms", "rows_per_second"} <= set(
            table[name]
        )


def test_each_graph_on_a_cpu_has_its_share_of_what_products_alone_reach(finished: Finished) -> None:
    shares = {name: row["share_of_products"] for name, row in finished.table.items() if "share_of_products" in row}
    assert set(shares) == {"fp32", "int8", "teacher_fp32", "teacher_int8"}
    assert all(0 < share < 1.5 for share in shares.values())  # neighbours may disturb either time


def test_the_uncut_teacher_in_onnx_answers_as_the_teacher_does(finished: Finished) -> None:
    """Catches the student's graph, or the pretrained encoder's, under the teacher's name."""
    with np.load(finished.folder / "run" / "evaluate" / "logits.npz") as logits:
        teacher = logits["eval/teacher"]
        assert np.abs(logits["eval/teacher_fp32"] - teacher).max() < 1e-4 * max(1, np.abs(teacher).max())
        assert np.abs(logits["eval/fp32"] - teacher).max() > 0.01
        assert 0 < np.abs(logits["eval/teacher_int8"] - teacher).mean() < 0.1 * np.abs(teacher).mean()
    table = finished.table
    assert table["teacher_fp32"]["parameters"] == table["teacher"]["parameters"] > table["fp32"]["parameters"]


@pytest.mark.usefixtures("instant")
def test_another_student_exports_the_teacher_no_second_time(finished: Finished, copied: Path) -> None:
    skipped = again(finished, copied, "student.temperature=3")
    assert skipped["uncut"]
    assert not skipped["export"]


def test_the_students_without_kd_are_kept_by_the_students_rule_and_by_loss(finished: Finished) -> None:
    """Catches controls that tilt the comparison by how their step is chosen."""
    controls = read_result(finished.folder / "run", ControlsResult)
    for model, kept in (
        (
            controls.student_without_kd,
            lambda curves: [max(curves.score, key=lambda point: point[1]), curves.score[-1]],
        ),
        (controls.student_without_kd_by_loss, lambda curves: [min(curves.tune_loss, key=lambda point: point[1])]),
    ):
        assert model is not None
        assert model.training is not None
        assert model.training.best_step in dict(kept(model.training.history))


def test_the_controls_that_are_made_are_those_that_tell_something(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a control that is named and never made, or made and not named."""

    def make(run: Run, work: Path, **_: Any) -> ModelResult:
        (work / "model").mkdir(parents=True)
        return ModelResult.model_validate_json(record.read_text())

    record = finished.folder / "run" / "controls" / "teacher_lora.json"
    for name in ("student_control", "teacher_lora"):
        monkeypatch.setattr(controls, name, make)
    monkeypatch.setattr(PreparedData, "tokens", lambda *_: [])
    three = {"student_without_kd", "student_without_kd_by_loss", "teacher_lora"}
    run = open_run(finished.folder / "run", finished.config, Reporter())
    assert _made(run, tmp_path / "three") == three
    monkeypatch.setattr(PreparedData, "has", lambda self, split: True)
    data = finished.config.data.model_copy(update={"unlabeled": tmp_path})
    run = open_run(finished.folder / "run", finished.config.model_copy(update={"data": data}), Reporter())
    four = three | {"student_without_unlabeled"}
    assert _made(run, tmp_path / "four") == four
    by_loss = finished.config.student.model_copy(update={"kept_step": "loss"})
    run = open_run(finished.folder / "run", run.config.model_copy(update={"student": by_loss}), Reporter())
    made = four - {"student_without_kd_by_loss"} | {"student_without_kd_by_score"}
    assert _made(run, tmp_path / "by loss") == made
    assert four | made == set(CONTROLS)


def _made(run: Run, out: Path) -> set[str]:
    """The controls that the stage made, of which each has a folder and a result."""
    out.mkdir()
    made = {name for name, result in controls.run(run, out) if name in CONTROLS and result is not None}
    assert made == {path.name for path in out.iterdir() if path.is_dir()}
    return made


def test_a_teacher_that_has_no_graph_is_left_out_and_told_of(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a run that ends with an error after hours because of a model that nobody is to serve."""

    def fails(*given: Any, **more: Any) -> None:
        raise KdcError("this graph has an operation that nobody knows")

    monkeypatch.setattr(uncut, "export_model", fails)
    flags = {"run.out": copied, "run.controls": False, "export.teacher": True}
    config = tiny_runs.config_for(finished.folder, finished.teacher, flags=flags)
    done = tiny_runs.compress(config, start_from="uncut")
    assert done.result is not None
    assert {"teacher_fp32", "teacher_int8"}.isdisjoint(done.metrics)
    assert any("an operation that nobody knows" in note for note in done.result.notes)


@pytest.mark.slow
def test_serving_a_model_takes_less_memory_than_torch(finished: Finished) -> None:
    run, texts = finished.folder / "run", [("w1 w5", "w6"), ("w2", "w7 w8")]
    info = TokenizerInfo.model_validate_json((run / "export" / "tokenizer_info.json").read_text())
    task = open_data(run / "data").task.info()
    torch_bytes, onnx_bytes = (
        peak_memory_bytes(
            ModelFiles(model=model, tokenizer_json=folder / "tokenizer.json", tokenizer=info, task=task), texts
        )
        for folder in (run / "merge" / "model", run / "export")
        for model in (folder if folder.name == "model" else folder / "model.onnx",)
    )
    assert 10_000_000 < onnx_bytes < torch_bytes


def test_the_same_command_again_does_nothing(finished: Finished, copied: Path) -> None:
    assert all(again(finished, copied).values())


@pytest.mark.usefixtures("instant")
def test_a_changed_setting_redoes_its_stage_and_what_reads_it(finished: Finished, copied: Path) -> None:
    skipped = again(finished, copied, "quantize.max_int8_drop=50")
    assert [name for name, was in skipped.items() if not was] == ["quantize", "uncut", "evaluate", "package"]


@pytest.mark.slow
def test_new_unlabelled_rows_do_not_train_the_teacher_again(finished: Finished, copied: Path) -> None:
    extra = tiny_runs.write_rows(copied.parent / "extra.csv", 60, seed=9)
    skipped = again(finished, copied, how={"until": "student"}, flags={"data.unlabeled": extra})
    assert skipped == {"data": False, "teacher": True, "targets": False, "student": False}
    targets = np.load(copied / "targets" / "logits.npy")
    assert len(targets) == 700 + 60
    fewer = {"data.unlabeled": extra, "data.max_unlabeled_rows": 40}
    assert again(finished, copied, how={"until": "targets"}, flags=fewer) == {
        "data": False,
        "teacher": True,
        "targets": False,
    }
    assert len(np.load(copied / "targets" / "logits.npy")) == 700 + 40


@pytest.mark.usefixtures("instant")
def test_changed_training_rows_redo_everything(finished: Finished, copied: Path) -> None:
    train = tiny_runs.write_rows(copied.parent / "train.csv", 650, seed=8)
    assert not any(again(finished, copied, flags={"data.train": train}).values())


def test_from_redoes_a_stage_though_nothing_changed(finished: Finished, copied: Path) -> None:
    skipped = again(finished, copied, how={"start_from": "merge", "until": "merge"})
    assert [name for name, was in skipped.items() if not was] == ["merge"]


def test_a_redone_stage_leaves_nothing_later_that_was_made_from_the_old_one(finished: Finished, copied: Path) -> None:
    again(finished, copied, how={"start_from": "merge", "until": "merge"})
    skipped = again(finished, copied, how={"until": "export"})
    assert skipped == {"data": True, "teacher": True, "targets": True, "student": True, "merge": True, "export": False}


def test_moving_the_data_trains_nothing_again(finished: Finished, copied: Path) -> None:
    moved = copied.parent / "elsewhere"
    moved.mkdir()
    for name in ("train.csv", "eval.csv"):
        shutil.copy(finished.folder / name, moved / name)
    shutil.copytree(finished.teacher, moved / "teacher")
    flags = {
        "data.train": moved / "train.csv",
        "data.eval": moved / "eval.csv",
        "teacher.model": str(moved / "teacher"),
    }
    assert all(again(finished, copied, flags=flags).values())


def test_a_lost_artifact_is_made_again(finished: Finished, copied: Path) -> None:
    shutil.rmtree(copied / "artifacts")
    skipped = again(finished, copied)
    assert [name for name, was in skipped.items() if not was] == ["package"]
    load_manifest(copied / "artifact")


@pytest.mark.slow
def test_another_machine_quantises_and_measures_again(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = machine.cpu()
    monkeypatch.setattr(machine, "cpu", lambda: real.model_copy(update={"model": "Another CPU 9000"}))
    skipped = again(finished, copied)
    assert [name for name, was in skipped.items() if not was] == ["quantize", "uncut", "evaluate", "package"]
    assert load_manifest(copied / "artifact").lineage.cpu == "Another CPU 9000"


@pytest.mark.parametrize(
    ("measured", "loads"),
    [((), "fp32"), (("fp32 (cuda)", "fp16 (cuda)"), "fp16"), (("fp32 (cuda)",), "fp32")],
)
def test_a_gpu_loads_fp16_only_where_it_ran_on_one(measured: tuple[str, ...], loads: str) -> None:
    table: dict[str, dict] = {name: {} for name in ("fp32", "fp16", *measured)}
    assert on_cuda(("fp32", "fp16"), table) == loads


@pytest.mark.parametrize(("stage", "check"), [(merge, "check_merge"), (evaluate, "check_served")])
def test_a_model_that_does_not_answer_as_the_one_before_it_ends_the_run(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, check: str
) -> None:
    """Would catch: a comparison that is there and never made."""

    def differs(*given: Any, **more: Any) -> None:
        raise KdcError("another model")

    monkeypatch.setattr(stage, check, differs)
    with pytest.raises(KdcError, match="another model"):
        again(finished, copied, how={"start_from": stage.__name__.rpartition(".")[2]})


@pytest.mark.usefixtures("instant")
def test_another_student_does_not_train_the_teacher_again(finished: Finished, copied: Path) -> None:
    student = tiny_runs.base_model("mpnet", copied.parent / "student")
    skipped = again(finished, copied, how={"until": "teacher"}, flags={"student.model": str(student)})
    assert skipped == {"data": False, "teacher": True}


def test_the_same_cut_by_another_name_is_not_trained_again(finished: Finished, copied: Path) -> None:
    only_last = "layers:1"  # of two layers, what layers:first-and-last keeps
    skipped = again(finished, copied, how={"until": "student"}, flags={"student.model": only_last})
    assert all(skipped.values())


@pytest.mark.slow
def test_another_cut_is_trained(finished: Finished, copied: Path) -> None:
    skipped = again(finished, copied, how={"until": "merge"}, flags={"student.model": "layers:0"})
    assert [name for name, was in skipped.items() if not was] == ["student", "merge"]
    teacher, before, now = (
        load_file(folder / "model.safetensors")
        for folder in (
            copied / "teacher" / "model",
            finished.folder / "run" / "merge" / "model",
            copied / "merge" / "model",
        )
    )
    # Only adapters and head are trained, so the embedding tells nothing; a layer norm shows which layer was kept.
    for student, layer in ((before, 1), (now, 0)):
        norm = "output.LayerNorm.weight"
        kept = student[f"bert.encoder.layer.0.{norm}"]
        assert torch.equal(kept, teacher[f"bert.encoder.layer.{layer}.{norm}"])
    assert not torch.equal(now["classifier.weight"], teacher["classifier.weight"])


@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": True}, None),
        ({"avx512_f": True, "amx_bf16": True, "avx512_bf16": False}, None),
        ({}, False),
    ],
)
def test_auto_leaves_bf16_open_where_the_cpu_multiplies_it(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], bf16: bool | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    config = tiny_runs.config_for(finished.folder, finished.teacher, "run.precision=auto", "run.device=cpu")
    assert open_run(finished.folder, config, Reporter(quiet=True)).bf16 is bf16


@pytest.mark.usefixtures("instant")
def test_force_redoes_all(finished: Finished, copied: Path) -> None:
    skipped = again(finished, copied, how={"force": True})
    assert skipped == dict.fromkeys(finished.result.stages, False)


def test_force_forgets_all_stages_before_it_redoes_the_first(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def stop(run: Run, stage: Stage, *rest: object) -> StageRecord:
        begun.append(stage.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "_do", stop)
    with pytest.raises(KeyboardInterrupt):
        again(finished, copied, how={"force": True})
    assert begun == ["data"]
    assert not list(copied.glob("*/stage.json"))  # on disk no stage counts as done any more


def test_an_unknown_stage_is_wrong_input(finished: Finished, copied: Path) -> None:
    with pytest.raises(InputError, match="no such stage"):
        again(finished, copied, how={"until": "distil"})


def test_a_stage_killed_before_its_rename_is_not_repeated(finished: Finished, copied: Path) -> None:
    (copied / "teacher").rename(copied / "teacher.partial")
    assert again(finished, copied, how={"until": "targets"}) == {"data": True, "teacher": True, "targets": True}


def test_a_second_run_in_the_same_directory_is_refused(finished: Finished, copied: Path) -> None:
    from filelock import FileLock

    with FileLock(copied / "run.lock"), pytest.raises(InputError, match="another run works"):
        again(finished, copied)


def test_an_output_path_that_is_a_file_is_wrong_input(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot work in this directory"):
        again(finished, tmp_path / "file")


def test_a_damaged_stage_record_says_what_to_remove(finished: Finished, copied: Path) -> None:
    (copied / "merge" / "stage.json").write_text("{")
    with pytest.raises(KdcError, match="remove the folder"):
        again(finished, copied)


def test_the_resolved_config_and_each_stages_settings_are_in_the_run(finished: Finished) -> None:
    run = finished.folder / "run"
    assert json.loads((run / "config.json").read_text())["student"]["lora"]["r"] == 8
    for stage in finished.result.stages:
        record = json.loads((run / stage / "stage.json").read_text())
        assert {"fingerprint", "settings", "metrics", "seconds", "peak_memory_bytes"} <= set(record)


def test_a_finished_run_keeps_no_checkpoint(finished: Finished) -> None:
    assert not list((finished.folder / "run").rglob("checkpoint-*"))
    assert not list((finished.folder / "run").glob("*.partial"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics(finished: Finished, tmp_path: Path) -> None:
    again(finished, tmp_path / "run", how={"until": "student"})
    for stage in ("teacher", "student"):
        one, two = (
            json.loads((run / stage / "stage.json").read_text())["metrics"]
            for run in (finished.folder / "run", tmp_path / "run")
        )
        for clock in ("rows_per_second", "seconds"):
            one.pop(clock), two.pop(clock)
        assert one == two


def test_the_artifact_is_a_symlink_to_a_verified_folder(finished: Finished) -> None:
    link = finished.artifact
    assert link.is_symlink()
    manifest = load_manifest(link)
    assert manifest.task.labels == ("no", "yes")
    assert manifest.lineage.teacher == "teacher"
    assert not any(str(finished.folder) in file.read_text() for file in (link / "manifest.json", link / "README.md"))


def test_the_stored_logits_give_the_promised_metrics(finished: Finished) -> None:
    stored = np.load(finished.artifact / "evaluation.npz")
    table = finished.table
    for key, name in (("teacher_logits", "teacher"), ("student_logits", "fp32"), ("student_int8_logits", "int8")):
        right = (stored[key].argmax(1) == stored["label"]).mean()
        assert 100 * right == pytest.approx(table[name]["accuracy"], abs=1e-3)
    assert stored["text_sha256"].shape == (90, 32)


def test_the_teachers_targets_are_those_of_the_saved_teacher(finished: Finished) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    run = finished.folder / "run"
    model = AutoModelForSequenceClassification.from_pretrained(run / "teacher" / "model").eval()
    targets = np.load(run / "targets" / "logits.npy")
    for row in list(open_data(run / "data").tokens("teacher", "train"))[::97]:
        with torch.no_grad():
            ids, types = torch.tensor([row["input_ids"]]), torch.tensor([row["token_type_ids"]])
            alone = model(input_ids=ids, token_type_ids=types).logits[0]
        assert np.allclose(alone.numpy(), targets[row["row"]], atol=1e-5)
