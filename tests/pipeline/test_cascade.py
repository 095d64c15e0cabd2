"""How many rows go on to a second model, and runs whose artifacts have one."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
import tiny_runs
from conftest import Finished
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from kdc.artifact.folder import load_manifest, write_manifest
from kdc.artifact.manifest import LongTexts, TokenizerInfo
from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.evaluation import second_model as second_model_module
from kdc.pipeline.evaluation.second_model import (
    SecondModel,
    _check_artifact,
    check_second,
    copy_second,
    files_in,
    scaled,
    second_model,
)
from kdc.pipeline.graphs.files import read_tokenizer_info
from kdc.pipeline.models import loading
from kdc.pipeline.quality.cascading import curve, fewest
from kdc.pipeline.quality.latency import Speed
from kdc.pipeline.report.page import write_report
from kdc.pipeline.results.artifact import CascadeResult, Pair, QuantizeResult
from kdc.pipeline.results.training import TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.record import CompressResult, read_result
from kdc.pipeline.stages import cascade
from kdc.serving.engine.engine import Engine
from kdc.tools.verify import verify_artifact

ALIKE = Speed(latency_p50_ms=1.0, latency_p95_ms=1.0, latency_mean_ms=1.0, rows_per_second=100.0)
TASK = custom_task("mood", "text", None, "label", "classification", ("bad", "so so", "good")).model_copy(
    update={"metrics": ("accuracy",)}
)


def draw(seed: int, rows: int = 150) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Logits of a weak and of a strong model, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, rows)
    truth = np.eye(3)[labels]
    weak, strong = (skill * truth + generator.normal(size=(rows, 3)) for skill in (1.0, 2.5))
    return weak, strong, labels


@pytest.mark.parametrize("seed", range(10))
def test_the_fewest_rows_go_on_that_keep_the_score_with_all_more(seed: int) -> None:
    """The oracle sends row after row on, the least sure first, and counts right answers; it knows nothing of
    thresholds. 100 rows, so that each step is one row."""
    weak, strong, labels = draw(seed, rows=100)
    sure = np.random.default_rng(seed + 50).random(100)
    order = np.argsort(sure)
    right = [
        int((weak[order[count:]].argmax(1) == labels[order[count:]]).sum())
        + int((strong[order[:count]].argmax(1) == labels[order[:count]]).sum())
        for count in range(101)
    ]
    points = curve(weak, strong, sure, labels, TASK)
    assert [round(point.score) for point in points] == right
    wanted = right[-1] - 2
    expected = next(count for count in range(101) if all(each >= wanted for each in right[count:]))
    chosen = fewest(points, wanted)
    assert chosen is not None
    assert round(100 * chosen.share) == expected
    assert (sure < chosen.answered_from).sum() == expected


def test_the_first_metric_of_the_task_decides() -> None:
    weak, strong, labels = draw(0)
    task = TASK.model_copy(update={"metrics": ("macro_f1", "accuracy")})
    points = curve(weak, strong, np.linspace(0, 1, len(labels)), labels, task)
    for point, logits in ((points[0], weak), (points[-1], strong)):
        assert point.score == pytest.approx(100 * f1_score(labels, logits.argmax(1), average="macro"))


def test_rounding_moves_no_row_over_a_threshold() -> None:
    """Would catch a threshold at a row's own sureness, of which another batch makes a little more or less."""
    weak, strong, labels = draw(0, rows=100)
    sure = np.linspace(0.3, 1, 100)
    thresholds = np.array([point.answered_from for point in curve(weak, strong, sure, labels, TASK)])
    assert len(thresholds) == 101
    assert np.abs(thresholds[:-1, None] - sure).min() == pytest.approx(0.35 / 99)
    assert thresholds[-1] > sure[-1]  # with the last one all rows go on


def test_a_dip_met_by_luck_is_not_taken() -> None:
    """Would catch the first share from below that reaches the score."""
    labels = np.zeros(100, dtype=np.int64)
    right, wrong = np.array([3.0, 0, 0]), np.array([0, 3.0, 0])
    weak, strong = np.tile(right, (100, 1)), np.tile(right, (100, 1))
    weak[:10] = weak[60:80] = wrong  # which the second model mends
    strong[10:30] = wrong  # which it spoils: 80 are right with 10 rows that go on, 60 with 30, 80 with 80
    chosen = fewest(curve(weak, strong, np.arange(100) / 100, labels, TASK), 80)
    assert chosen is not None
    assert chosen.share == pytest.approx(0.8)


def test_all_rows_go_on_where_fewer_are_not_enough() -> None:
    weak, strong, labels = draw(0)
    points = curve(weak, strong, np.random.default_rng(0).random(len(labels)), labels, TASK)
    assert fewest(points, points[-1].score + 0.1) == points[-1]
    assert points[-1].share == 1


def fast_student(models: Mapping[str, Any], texts: Any, **how: Any) -> dict[str, Speed]:
    """Speeds without a look at the clock: a student a hundred times as fast as a second model, whose int8 is a little
    faster than its fp32."""
    fixed = {"first": 1000.0, "second int8": 11.0, "second fp32": 10.0}
    speeds = {name: fixed.get(name, fixed["first"]) for name in models}
    return {
        name: Speed(latency_p50_ms=1.0, latency_p95_ms=1.0, latency_mean_ms=1.0, rows_per_second=speed)
        for name, speed in speeds.items()
    }


# A student that makes mistakes, of which it is not sure.
WEAK = ("student.min_steps=40", "student.epochs=0.01", "student.learning_rate=5e-3", "student.model=static")
UNCUT = ("export.teacher=true", "cascade.second=auto")


def config_of(finished: Finished, folder: Path, *sets: str, copied: bool = True) -> Config:
    """The finished run's settings with others, in a copy of its directory, so that its teacher is not trained again."""
    if copied:
        shutil.copytree(finished.folder / "run", folder / "run", symlinks=True)
    out = {"run.out": folder / "run"}
    return tiny_runs.config_for(finished.folder, finished.teacher, *WEAK, "run.controls=false", *sets, flags=out)


@pytest.fixture(scope="module")
def weak(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished run with this student, up to the graph of its teacher."""
    folder = tmp_path_factory.mktemp("weak")
    for name in ("train.csv", "eval.csv"):
        shutil.copy(finished.folder / name, folder / name)
    made = dataclasses.replace(finished, folder=folder)
    shutil.copytree(finished.folder / "run", folder / "run", symlinks=True)
    tiny_runs.compress(config_of(made, folder, *UNCUT, copied=False), until="uncut")
    return made


def compress(config: Config, monkeypatch: pytest.MonkeyPatch) -> CompressResult:
    """The run, with speeds that do not depend on the machine."""
    monkeypatch.setattr(cascade, "compare_speeds", fast_student)
    return tiny_runs.compress(config)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def test_a_run_with_a_second_model(weak: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom each row is answered by, and with what, is worked out from the two ONNX files; so are the share and the
    scores that the table, the manifest and the report tell of."""
    config = config_of(weak, tmp_path, *UNCUT, "operating.abstain=0.6", "contract.max_drop=2")
    made = compress(config, monkeypatch)
    assert "teacher" in {name for name, record in made.stages.items() if record.skipped}
    root, found = tmp_path / "run", read_result(tmp_path / "run", CascadeResult)
    pair, teacher = found.variants["cascade"], read_result(tmp_path / "run", TeacherResult)
    # Of the two points that the contract allows, one is kept for other rows.
    assert pair.wanted == pytest.approx(min(teacher.tune["macro_f1"] - 1, pair.second_score), abs=1e-3)
    assert pair.wanted < pair.second_score
    manifest = load_manifest(root / "artifact")
    assert (manifest.providers["CPUExecutionProvider"], manifest.providers["CUDAExecutionProvider"]) == (
        "cascade",
        "fp32",
    )
    variant = manifest.variants["cascade"]
    assert variant.second is not None
    assert (variant.second.file, variant.second.name) == ("second_int8.onnx", "the teacher itself, uncut")
    data = open_data(root / "data")
    for split, share in (("tune", variant.second.share), ("eval", None)):
        rows = data.rows(split)
        texts, labels = texts_of(rows), np.asarray(rows["label"][:])
        parts = []
        for file in (root / "artifact" / variant.file, root / "uncut" / "model.int8.onnx"):
            info = manifest.tokenizer.model_copy(
                update={"token_type_ids": variant.second.token_type_ids if file.parent.name == "uncut" else False}
            )
            tokenizer = root / "artifact" / "tokenizer.json"
            with Engine.from_files(file, tokenizer, task=manifest.task, tokenizer_info=info, threads=1) as engine:
                parts.append(engine.logits(texts))
        first, second = softmax(parts[0] / manifest.temperature), softmax(parts[1] / variant.second.temperature)
        goes_on = first.max(axis=1) < variant.second.answered_from
        both = np.where(goes_on[:, None], second, first)
        score = pytest.approx(100 * f1_score(labels, both.argmax(axis=1), average="macro"), abs=1e-3)
        with Engine.load(root / "artifact", device="cpu", threads=1) as engine:
            np.testing.assert_allclose(engine.predict(texts), both, atol=1e-5)
        if share is not None:
            assert goes_on.mean() == pytest.approx(share, abs=1e-6)
            assert 0 < share < 1
            assert found.variants["cascade"].score == score
            assert found.note == (
                f"the student (int8) sends {100 * goes_on.mean():.0f} % of the tuning set to the second model, the "
                "teacher itself, uncut (int8)"
            )
            assert found.variants["cascade"].score >= found.variants["cascade"].wanted
        else:
            assert made.metrics["cascade"]["macro_f1"] == variant.metrics["macro_f1"] == score
            shown = write_report(root).cascade
            assert shown is not None
            assert (shown.taken, shown.share) == (True, goes_on.mean())
            assert shown.score == score
    assert variant.size_bytes == sum(
        manifest.files[name].size for name in (variant.file, "second_int8.onnx", "tokenizer.json")
    )
    assert manifest.task.abstain is not None
    assert manifest.contract is not None
    assert (manifest.contract.variant, manifest.contract.costs.size_mb) == ("cascade", variant.size_bytes / 1e6)
    assert manifest.contract.quality is not None
    assert manifest.contract.quality.student == made.metrics["cascade"]["macro_f1"]
    columns = {name: getattr(weak.config.data, name) for name in ("text", "text_pair", "label")}
    again, _ = verify_artifact(root / "artifact", data=weak.folder / "eval.csv", columns=columns)
    assert again.quality == manifest.contract.quality
    assert [record.skipped for record in tiny_runs.compress(config).stages.values()] == [True] * len(made.stages)


def test_another_runs_artifact_may_be_the_second_model(
    finished: Finished, weak: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is worked out from the other artifact's own answers."""
    made = compress(config_of(weak, tmp_path, f"cascade.second={finished.artifact}"), monkeypatch)
    theirs, manifest = load_manifest(finished.artifact), load_manifest(tmp_path / "run" / "artifact")
    second = manifest.variants["cascade"].second
    assert second is not None
    assert second.name == theirs.lineage.student
    same = "int8" if second.file == "second_int8.onnx" else "fp32"
    assert manifest.files[second.file].sha256 == theirs.files[theirs.variants[same].file].sha256  # type: ignore[index]
    rows = open_data(tmp_path / "run" / "data").rows("eval")
    texts, labels = texts_of(rows), np.asarray(rows["label"][:])
    with (
        Engine.load(finished.artifact, variant=same, device="cpu", threads=1) as other,
        Engine.load(tmp_path / "run" / "artifact", variant="int8", device="cpu", threads=1) as student,
    ):
        own, others = student.predict(texts), other.logits(texts)
    answers = np.where(own.max(axis=1) < second.answered_from, others.argmax(axis=1), own.argmax(axis=1))
    score = pytest.approx(100 * f1_score(labels, answers, average="macro"), abs=1e-3)
    assert made.metrics["cascade"]["macro_f1"] == score


def test_a_second_model_whose_8_bits_cost_too_much_is_asked_in_fp32(
    weak: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch the faster format taken whatever it answers."""
    config = config_of(weak, tmp_path, *UNCUT)
    uncut = tmp_path / "run" / "uncut"
    graph = onnx.load(uncut / "model.onnx")
    (last,) = [node for node in graph.graph.node if "logits" in node.output]
    last.output[:] = ["other"]
    graph.graph.node.append(onnx.helper.make_node("Neg", ["other"], ["logits"]))  # always wrong
    onnx.save(graph, uncut / "model.int8.onnx")
    compress(config, monkeypatch)
    best = read_result(tmp_path / "run", CascadeResult).best
    assert best is not None
    assert best.second == "fp32"


@pytest.mark.slow
def test_a_contract_that_two_models_would_miss_is_judged_for_one(
    weak: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an artifact that keeps the second model's files, and a report that says it is taken."""
    small = compress(config_of(weak, tmp_path, *UNCUT), monkeypatch)
    size: Any = small.metrics["int8"]["size_bytes"]
    limit = f"contract.max_size_mb={1.01 * size / 1e6}"
    config = config_of(weak, tmp_path, *UNCUT, "contract.max_drop=2", limit, "contract.search=off", copied=False)
    made = compress(config, monkeypatch)
    manifest = load_manifest(tmp_path / "run" / (made.result.artifact if made.result else ""))
    assert (manifest.providers["CPUExecutionProvider"], set(manifest.variants)) == ("int8", {"fp32", "int8", "fp16"})
    assert not [name for name in manifest.files if name.startswith("second")]
    assert made.result is not None
    assert any("would miss its contract" in note for note in made.result.notes)
    shown = write_report(tmp_path / "run").cascade
    assert shown is not None
    assert not shown.taken


def test_a_second_model_that_is_as_fast_is_not_needed(
    weak: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade, "compare_speeds", lambda models, *_, **__: dict.fromkeys(models, ALIKE))
    made = tiny_runs.compress(config_of(weak, tmp_path, *UNCUT))
    manifest = load_manifest(tmp_path / "run" / "artifact")
    assert not {"cascade", "cascade_fp32"} & manifest.variants.keys()
    assert not [name for name in manifest.files if name.startswith("second")]
    assert made.result is not None
    assert any(note.startswith("no second model is taken") for note in made.result.notes)
    shown = write_report(tmp_path / "run").cascade
    assert shown is not None
    assert not shown.taken


def test_a_pair_answers_as_fast_as_the_time_of_its_models_allows() -> None:
    """The student's time for each row, and the second model's for the share that goes on; all is counted by hand."""
    weak, strong, labels = draw(1, rows=400)
    right = {name: 100 * (logits.argmax(1) == labels).mean() for name, logits in (("weak", weak), ("strong", strong))}
    data: Any = SimpleNamespace(rows=lambda split: {"label": {"tune": labels}[split]}, task=TASK)
    first = ("int8", cascade._Answers(weak, right["weak"], 2.0, 700.0))
    second = ("fp32", cascade._Answers(strong, right["strong"], 0.5, 90.0))
    for bar, wanted in ((None, right["strong"] - 3), (70.0, 70.0), (99.9, right["strong"])):
        pair = cascade._pair(data, first, second, max_drop=3.0, bar=bar)
        goes_on = softmax(weak / 2.0).max(axis=1) < pair.answered_from
        answers = np.where(goes_on, strong.argmax(1), weak.argmax(1))
        assert (pair.first, pair.second, pair.temperature) == ("int8", "fp32", 0.5)
        assert pair.wanted == pytest.approx(wanted, abs=1e-4)
        assert pair.score == pytest.approx(100 * (answers == labels).mean())
        assert pair.score >= wanted - 1e-9
        assert pair.share == pytest.approx(goes_on.mean(), abs=1e-6)
        assert 0 < pair.share <= 1
        seconds = (400 / 700 + goes_on.sum() / 90) / 400
        assert pair.rows_per_second == pytest.approx(1 / seconds, abs=0.051)


def test_a_pair_is_not_taken_if_the_student_is_enough_or_two_models_gain_too_little() -> None:
    pair = Pair(
        first="int8",
        second="fp32",
        temperature=1.0,
        answered_from=0.7,
        share=0.75,
        score=90.0,
        first_score=88.24,
        second_score=91.5,
        wanted=89.5,
        rows_per_second=22.0,
        second_rows_per_second=20.0,
    )
    assert cascade._why_not(pair, 19.0) == cascade._why_not(pair, 20.0) == ""  # a tenth more is enough
    assert cascade._why_not(pair, 20.4) == (
        "no second model is taken: 75 % of the rows would go to it, and the pair would answer 22 rows a second; it "
        "alone answers 20"
    )
    assert cascade._why_not(pair.model_copy(update={"share": 0.0, "wanted": 88.0}), 10.0) == (
        "no second model is taken: the student alone scores 88.2 on the tuning set, and 88.0 is enough (the "
        "second model 91.5)"
    )


def stand_in(folder: Path, labels: NDArray[np.int64], **config: Any) -> Any:
    """A run without models: its rows are `labels`, its teacher scores 93 points."""
    rows = {"text": [f"text {place}" for place in range(len(labels))], "label": labels}
    settings = {
        "cascade": SimpleNamespace(second="auto", max_drop=1.0),
        "contract": SimpleNamespace(terms=None),
        "evaluate": SimpleNamespace(throughput_rows=32, rounds=1),
        "searches": True,
    }
    results = {
        QuantizeResult: SimpleNamespace(chosen="channel", temperature=1.5),
        TeacherResult: SimpleNamespace(tune={"accuracy": 93.0}),
        TargetsResult: SimpleNamespace(baseline_comparison=None),
    }
    data = SimpleNamespace(task=TASK, rows=lambda split: {"tune": rows}[split], groups=lambda split: None)
    return SimpleNamespace(
        config=SimpleNamespace(**settings | config),
        data=lambda: data,
        device=config.get("device", "cpu"),
        folder=lambda stage: folder / stage,
        progress=lambda done, total: None,
        result=results.__getitem__,
        fingerprints={"uncut": "now"},
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("max_drop", [None, 1.0, 3.0])
def test_of_what_a_contract_allows_half_is_left_for_other_rows(
    device: str, max_drop: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a bar that is not of the contract, a share in other words than percent, and a cascade in fp32 for a
    machine without a GPU."""
    weak, strong, labels = draw(1, rows=400)
    score = [100 * (logits.argmax(1) == labels).mean() for logits in (weak, strong)]
    firsts = {name: cascade._Answers(weak, score[0], 1.0, speed) for name, speed in (("fp32", 900.0), ("int8", 1000.0))}
    seconds = {name: cascade._Answers(strong, score[1], 1.0, speed) for name, speed in (("fp32", 10.0), ("int8", 11.0))}
    monkeypatch.setattr(cascade, "_answers", lambda run, second: (firsts, seconds))
    monkeypatch.setattr(cascade, "_problem", lambda *_: "")
    terms = None if max_drop is None else SimpleNamespace(limits=SimpleNamespace(max_drop=max_drop), against="teacher")
    run = stand_in(tmp_path, labels, contract=SimpleNamespace(terms=terms), device=device)
    found = cascade.run(run, tmp_path)
    wanted = score[1] - 1.0 if max_drop is None else min(93.0 - max_drop / 2, score[1])
    assert found.best is not None
    assert (found.best.first, found.best.second) == ("int8", "int8")
    assert found.best.wanted == pytest.approx(wanted, abs=1e-4)
    assert 0.01 < found.best.share < 0.9
    assert found.note == (
        f"the student (int8) sends {100 * found.best.share:.0f} % of the tuning set to the second model, "
        "the teacher itself, uncut (int8)"
    )
    assert list(found.variants) == (["cascade"] if device == "cpu" else ["cascade", "cascade_fp32"])
    assert {(pair.first, pair.second) for pair in list(found.variants.values())[1:]} <= {("fp32", "fp32")}


@pytest.mark.parametrize(("wrong", "limit", "kept"), [(6, 3.0, True), (6, 2.9, False), (6, 4.0, True), (0, 0.0, True)])
def test_8_bits_of_a_second_model_may_cost_what_those_of_a_student_may(
    wrong: int, limit: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 rows that fp32 has right, int8 has so many wrong."""
    labels = np.arange(200) % 3
    right = 4.0 * np.eye(3)[labels]
    poorer = right.copy()
    poorer[:wrong] = np.roll(poorer[:wrong], 1, axis=1)
    of_file = {tmp_path / "uncut" / "model.onnx": right, tmp_path / "uncut" / "model.int8.onnx": poorer}
    second = SecondModel(tmp_path / "uncut", "teacher", dict(zip(("fp32", "int8"), of_file, strict=True)))
    run = stand_in(tmp_path, labels, quantize=SimpleNamespace(max_int8_drop=limit))
    run.open_engine = lambda file, **_: SimpleNamespace(logits=lambda texts: of_file.get(file, -right))
    monkeypatch.setattr(cascade, "texts_of", lambda rows: rows["text"])
    monkeypatch.setattr(cascade, "compare_speeds", fast_student)
    firsts, seconds = cascade._answers(run, second)
    assert {name: (each.score, each.temperature) for name, each in firsts.items()} == {
        "fp32": (0.0, 1.5),
        "int8": (0.0, 1.5),
    }
    scores = {"fp32": 100.0, "int8": 100.0 - wrong / 2}
    assert {name: each.score for name, each in seconds.items()} == {
        name: pytest.approx(score) for name, score in scores.items() if kept or name == "fp32"
    }


@pytest.mark.parametrize("differs", [None, "tokenizer.json", "tokenizer_info.json"])
def test_two_models_of_other_tokens_or_lengths_are_no_pair(differs: str | None, tmp_path: Path) -> None:
    info = TokenizerInfo(max_length=48, pad_id=0, pad_token="[PAD]", token_type_ids=True)
    for folder in ("export", "uncut"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        types = info.model_copy(update={"token_type_ids": folder == "uncut"})  # which a student may lack
        (tmp_path / folder / "tokenizer_info.json").write_text(types.model_dump_json(), encoding="utf-8")
    if differs is not None:
        other = "{ }" if differs == "tokenizer.json" else info.model_copy(update={"max_length": 9}).model_dump_json()
        (tmp_path / "uncut" / differs).write_text(other, encoding="utf-8")
    second = SecondModel(tmp_path / "uncut", "teacher", {"fp32": tmp_path / "uncut" / "model.onnx"})
    problem = cascade._problem(TASK, tmp_path / "export", second)
    assert ("has another tokenizer" in problem) is (differs is not None)


def test_a_number_has_no_second_model_and_no_run_ends_for_it(tmp_path: Path) -> None:
    number = custom_task("stars", "text", None, "label", "regression")
    none, some = (SecondModel(tmp_path, "teacher", files) for files in ({}, {"fp32": tmp_path / "model.onnx"}))
    for second in (none, some):
        assert "a number does not tell" in cascade._problem(number, tmp_path, second)
    assert "no graph of the uncut teacher" in cascade._problem(TASK, tmp_path, none)


def test_what_cannot_be_a_second_model_is_refused_before_training(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch refusals that come when the teacher is trained."""
    artifact = shutil.copytree(finished.artifact, tmp_path / "other")
    manifest = load_manifest(artifact)
    lineage = manifest.lineage.model_copy(update={"data_fingerprint": "0"})
    for changes, words in (
        ({"task": manifest.task.model_copy(update={"labels": ("a", "b")})}, "same labels"),
        ({"tokenizer": manifest.tokenizer.model_copy(update={"max_length": 9})}, "same tokens"),
        ({"lineage": lineage}, "other rows"),
    ):
        write_manifest(artifact, manifest.model_copy(update=changes))
        with pytest.raises(InputError, match=words):
            tiny_runs.compress(config_of(finished, tmp_path / words, f"cascade.second={artifact}"), until="data")
    for sets, words in (
        (("student.model=teacher", *UNCUT), "no exported, uncut teacher"),
        (("cascade.second=auto",), "no exported, uncut teacher"),
        ((f"cascade.second={tmp_path / 'nothing'}",), "no artifact"),
    ):
        with pytest.raises(InputError, match=words):
            tiny_runs.compress(config_of(finished, tmp_path / str(hash(sets)), *sets), until="data")
    config = config_of(finished, tmp_path, *UNCUT, "student.vocabulary=auto", copied=False)
    with pytest.raises(InputError, match="must read the same tokens"):
        check_second(Run(root=finished.folder / "run", config=config))


def test_logits_of_one_temperature_become_those_of_another() -> None:
    """By the definition: divided by their own temperature, they are the same as before."""
    logits = np.array([[3.0, -6.0], [0.0, 1.5]], dtype=np.float32)
    for temperature, wanted in ((1.5, 4.0), (4.0, 0.5), (2.0, 2.0)):
        np.testing.assert_allclose(scaled(logits, temperature, wanted) / wanted, logits / temperature, rtol=1e-6)


def test_which_second_models_are_looked_at_before_training_and_by_whose_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a refusal of what a search may still mend, and a teacher that is not there."""
    tokens_of_artifact = []
    monkeypatch.setattr(second_model_module, "_check_artifact", lambda *given: tokens_of_artifact.append(given[4]))
    vocabularies = {"the teacher": {"a": 0}, "the same": {"a": 0}, "another": {"b": 0}}
    tokenizer = lambda model: SimpleNamespace(get_vocab=lambda: vocabularies[model])  # noqa: E731
    monkeypatch.setattr(loading, "load_tokenizer", tokenizer)

    def refusal(second: str | Path | None = "auto", kind: str = "classification", **changes: Any) -> str:
        settings: dict[str, Any] = {
            "searches": False,
            "has_one_teacher": True,
            "exports": True,
            "trained": True,
            "of_teacher": True,
        }
        settings |= {"pieces": True, "student": "with layers"} | changes
        student = SimpleNamespace(
            model=settings["student"],
            kind=SimpleNamespace(is_of_teacher=settings["of_teacher"], is_trained=settings["trained"]),
            has_all_pieces=settings["pieces"],
            vocabulary="auto",
        )
        config = SimpleNamespace(
            cascade=SimpleNamespace(second=second),
            student=student,
            teacher=SimpleNamespace(model="the teacher"),
            export=SimpleNamespace(teacher=settings["exports"]),
            long=SimpleNamespace(of=lambda length: None),
            searches=settings["searches"],
            has_one_teacher=settings["has_one_teacher"],
        )
        run: Any = SimpleNamespace(
            config=config,
            data=lambda: SimpleNamespace(task=TASK.model_copy(update={"kind": kind})),
            result=lambda kind: SimpleNamespace(max_length={"student": 48}),
            fingerprints={"data": "rows"},
        )
        try:
            check_second(run)
        except InputError as error:
            return error.what
        return ""

    for unasked in (None, "off"):
        assert refusal(unasked, "regression", pieces=False, exports=False) == ""
    asked: tuple[str | Path, ...] = ("auto", tmp_path)
    for second in asked:
        assert "a number does not tell" in refusal(second, "regression")
        assert "read the same tokens" in refusal(second, pieces=False)
    assert refusal() == refusal(kind="multilabel") == ""
    lacking: tuple[dict[str, Any], ...] = ({"has_one_teacher": False}, {"exports": False}, {"trained": False})
    for changes in lacking:
        assert "no exported, uncut teacher" in refusal(**changes)
    of_others: dict[str, Any] = {"of_teacher": False}
    assert refusal(student="the same", **of_others) == refusal(student="another", searches=True, **of_others) == ""
    assert "tokenizers, lengths or windows differ" in refusal(student="another", **of_others)
    assert refusal(student="another") == ""  # never read, since it is made of the teacher
    assert tokens_of_artifact == []
    for searches in (False, True):
        assert refusal(tmp_path, exports=False, searches=searches) == ""
        assert refusal(tmp_path, student="another", searches=searches, **of_others) == ""
    assert tokens_of_artifact == ["the teacher", "another", "the teacher", None]


def test_the_second_model_is_the_teacher_or_what_was_copied_of_an_artifact(tmp_path: Path) -> None:
    for name in ("uncut", "cascade"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").touch()
    for asked, folder, entry in (("auto", "uncut", "teacher"), (tmp_path / "artifact", "cascade", "second")):
        run = stand_in(tmp_path, np.zeros(1, dtype=np.int64), cascade=SimpleNamespace(second=asked))
        files = {"fp32": tmp_path / folder / "model.onnx"}
        assert second_model(run) == SecondModel(tmp_path / folder, entry, files)


@pytest.mark.parametrize(("loaded", "copied"), [("int8", {"fp32", "int8"}), ("fp32", {"fp32"})])
def test_what_a_cpu_loads_of_an_artifact_is_copied(loaded: str, copied: set[str], tmp_path: Path) -> None:
    """Would catch int8 that its own run found too poor, a file under another's name, and rows cut elsewhere."""
    artifact, out = tmp_path / "artifact", tmp_path / "out"
    names = {"fp32": "student.onnx", "int8": "student.int8.onnx", "fp16": "student.fp16.onnx"}
    for folder in (artifact, out):
        folder.mkdir()
    for file in (*names.values(), "tokenizer.json"):
        (artifact / file).write_text(file, encoding="utf-8")
    manifest: Any = SimpleNamespace(
        variants={name: SimpleNamespace(file=file) for name, file in names.items()},
        providers={"CPUExecutionProvider": loaded, "CUDAExecutionProvider": "fp16"},
        tokenizer=TokenizerInfo(max_length=48, pad_id=0, pad_token="[PAD]", token_type_ids=True),
    )
    copy_second(manifest, artifact, out)
    files = files_in(out)
    assert {name: file.read_text(encoding="utf-8") for name, file in files.items()} == {
        name: names[name] for name in copied
    }
    assert (out / "tokenizer.json").read_text(encoding="utf-8") == "tokenizer.json"
    assert read_tokenizer_info(out) == manifest.tokenizer
    assert len(list(out.iterdir())) == len(copied) + 2


def test_an_artifact_is_a_second_model_if_it_reads_the_same_tokens_of_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a length that is longer, or windows of other steps; how windows are joined may differ."""
    own, more = tmp_path / "own", tmp_path / "more"
    tokenizer = tiny_models.build_tokenizer()
    for folder in (own, more):
        tiny_runs.base_model("bert", folder)
        tokenizer.save_pretrained(folder)
        tokenizer.add_tokens(["another"])
    windows = LongTexts(stride=30, windows=8, join=("mean",))

    def refusal(tokenizer: Path | None = own, rows: str = "rows", max_length: int = 48, **changes: Any) -> str:
        manifest = SimpleNamespace(
            variants={"fp32": SimpleNamespace(second=changes.get("second"))},
            task=SimpleNamespace(kind=changes.get("kind", TASK.kind), labels=changes.get("labels", TASK.labels)),
            tokenizer=SimpleNamespace(max_length=48, long=changes.get("theirs")),
            lineage=SimpleNamespace(data_fingerprint="rows"),
        )
        monkeypatch.setattr(second_model_module, "load_manifest", lambda folder: manifest)
        place = None if tokenizer is None else str(tokenizer)
        try:
            _check_artifact(own, "--cascade own", TASK, rows, place, max_length, changes.get("long"))
        except InputError as error:
            return error.what
        return ""

    assert refusal() == refusal(tokenizer=None) == refusal(tokenizer=None, max_length=9) == ""
    assert refusal(theirs=windows, long=windows) == ""
    assert refusal(theirs=windows.model_copy(update={"join": ("max",)}), long=windows) == ""
    assert "is itself a cascade" in refusal(second="another")
    for labels in (("bad", "good", "so so"), ("bad", "so so")):
        assert "need the same labels" in refusal(labels=labels)
    assert "need the same labels" in refusal(kind="multilabel")
    others: tuple[dict[str, Any], ...] = (
        {"max_length": 47},
        {"max_length": 49},
        {"long": windows},
        {"theirs": windows},
        {"theirs": windows, "long": windows.model_copy(update={"stride": 20})},
        {"theirs": windows, "long": windows.model_copy(update={"stride": 40})},
        {"tokenizer": more},
    )
    for changes in others:
        assert "read the same tokens" in refusal(**changes)
    assert "was made from other rows" in refusal(rows="other rows")
    assert "was made from other rows" in refusal(rows="other rows", tokenizer=None)


def test_a_graph_of_a_teacher_of_before_is_no_second_model(finished: Finished, tmp_path: Path) -> None:
    """Would catch one that an earlier start left in the run directory."""
    run = Run(root=finished.folder / "run", config=config_of(finished, tmp_path, *UNCUT, copied=False))
    assert (finished.folder / "run" / "uncut" / "model.onnx").exists()
    assert second_model(run).files == {}
    assert second_model(dataclasses.replace(run, fingerprints={"uncut": "now"})).files


@pytest.mark.parametrize(
    ("sets", "wanted"),
    [
        (("contract.max_latency_ms=5", "contract.search=quick"), True),
        (("contract.max_latency_ms=5", "contract.search=off"), False),
        (("contract.max_drop=1",), False),
        (("contract.max_latency_ms=5", "contract.search=quick", "student.vocabulary=auto"), False),
        (("contract.max_latency_ms=5", "contract.search=quick", "teacher.more=another"), False),
        (("contract.max_latency_ms=5", "contract.search=quick", "cascade.second=off"), False),
    ],
)
def test_a_search_looks_for_a_second_model_unasked_where_there_can_be_one(
    finished: Finished, tmp_path: Path, sets: tuple[str, ...], wanted: bool
) -> None:
    assert config_of(finished, tmp_path, "export.teacher=true", *sets, copied=False).cascades is wanted


def test_another_tokenizer_is_noted(weak: Finished, tmp_path: Path) -> None:
    """Would catch a whole training that ends with an error over its second model."""
    config = config_of(weak, tmp_path, *UNCUT)
    tokenizer = tmp_path / "run" / "uncut" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    run = Run(
        root=tmp_path / "run",
        config=config.model_copy(update={"cascade": config.cascade.model_copy(update={"second": None})}),
        fingerprints={"uncut": "now"},
    )
    assert "another tokenizer" in cascade.run(run, tmp_path).note


def test_a_number_says_nothing_of_how_sure_it_is(finished: Finished, tmp_path: Path) -> None:
    tiny_runs.write_rows(tmp_path / "train.csv", 60, seed=1, label=lambda yes, generator: generator.random() + yes)
    tiny_runs.write_rows(tmp_path / "eval.csv", 30, seed=2, label=lambda yes, generator: generator.random() + yes)
    config = tiny_runs.config_for(tmp_path, finished.teacher, *UNCUT)
    with pytest.raises(InputError, match="how sure it is"):
        tiny_runs.compress(config, until="data")
