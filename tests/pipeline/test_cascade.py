"""How many rows go on to a second model, and runs whose artifacts have one."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_runs
from conftest import Finished
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from kdc.artifact.folder import load_manifest, write_manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.evaluation.second_model import check_second, second_model
from kdc.pipeline.quality.cascading import curve, fewest
from kdc.pipeline.quality.latency import Speed
from kdc.pipeline.report.page import write_report
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult
from kdc.pipeline.results.training import TeacherResult
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
            assert found.variants["cascade"].score >= found.variants["cascade"].wanted
        else:
            assert made.metrics["cascade"]["macro_f1"] == variant.metrics["macro_f1"] == score
            told = f"{100 * goes_on.mean():.0f} % of the evaluation rows go to the second model"
            assert any(told in note for note in read_result(root, EvaluateResult).notes)
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
    again = verify_artifact(root / "artifact", data=weak.folder / "eval.csv", columns=columns).judgement
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


def test_unasked_another_tokenizer_is_only_noted(
    weak: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a weak training that ends with an error over what nobody asked for."""
    config = config_of(weak, tmp_path, *UNCUT)
    tokenizer = tmp_path / "run" / "uncut" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(InputError, match="their tokenizers"):
        compress(config, monkeypatch)
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
