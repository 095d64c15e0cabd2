"""A frontier: one teacher, several students, each an artifact of its own, and a page that compares them."""

import csv
import html
import json
import os
import random
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import transformers
from conftest import Finished
from sklearn.metrics import f1_score

import kdc
from kdc.common.errors import InputError, KdcError
from kdc.common.progress import Reporter
from kdc.pipeline import frontier as module
from kdc.pipeline.compress import render_frontier
from kdc.pipeline.config.settings import Config
from kdc.pipeline.frontier import make_frontier
from kdc.pipeline.models.loading import load_config
from kdc.pipeline.quality.frontier import COSTS, FrontierFacts, Left, Point, front
from kdc.pipeline.report.frontier import read_facts, table, write_frontier
from kdc.pipeline.run import compress
from kdc.pipeline.rundir import folders
from kdc.pipeline.stages.candidates import curve_of
from kdc.serving.engine.engine import Engine


def config_of(finished: Finished, out: Path, *sets: str, **flags: Any) -> Config:
    return tiny_runs.config_for(
        finished.folder, finished.teacher, "baselines.enabled=true", *sets, flags={"run.out": out, **flags}
    )


def frontier(config: Config, **how: Any) -> FrontierFacts:
    return make_frontier(config, reporter=Reporter(quiet=True), **how)


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Three points in place of all kinds, which take their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "curve_of", lambda _: ["layers:1", "teacher", "static"])
        yield


@pytest.fixture(scope="module")
def made(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, FrontierFacts]:
    config = config_of(finished, tmp_path_factory.mktemp("frontier") / "run")
    return config, frontier(config)


def root_of(config: Config) -> Path:
    assert config.run.out is not None
    return config.run.out


@pytest.mark.slow
def test_every_point_is_an_artifact_that_serves_with_the_score_that_is_told(
    finished: Finished, made: tuple[Config, FrontierFacts]
) -> None:
    """The oracle reads the rows itself. Would catch answers of another point or precision, and a wrong folder."""
    config, facts = made
    with (finished.folder / "eval.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    texts: Any = [(row["first"], row["second"]) for row in rows]
    assert facts.rows == len(rows)
    assert facts.metric == "macro_f1"
    assert {point.student for point in facts.points} == {"layers:1", "teacher", "static"}
    for point in facts.points:
        with Engine.load(root_of(config) / point.artifact, device="cpu", expect_sha256=point.sha256) as engine:
            answers = [engine.labels[place] for place in engine.predict(texts).argmax(1)]
            assert point.variant == engine.variant
        labels = [row["label"] for row in rows]
        assert point.score == pytest.approx(100 * f1_score(labels, answers, average="macro"), abs=1e-3)
        assert point.interval[0] <= point.score <= point.interval[1]
        assert point.difference == pytest.approx(point.score - facts.teacher)


def test_the_curve_goes_from_the_teacher_to_students_without_layers(finished: Finished, tmp_path: Path) -> None:
    """Of a teacher with two layers all parts are one layer, whole and narrow. Would catch a kind that is left out, a
    student that stands there twice under two names, and a teacher that several teachers do not have."""
    config = config_of(finished, tmp_path, **{"student.model": "layers:first-and-last"})
    narrow = f"layers:1,ffn={load_config(str(finished.teacher)).intermediate_size // 2}"
    assert curve_of(config) == ["layers:1", "teacher", narrow, f"{narrow},heads=1", "conv", "static", "linear"]
    several = config_of(finished, tmp_path, **{"student.model": "layers:0", "teacher.more": str(finished.teacher)})
    assert curve_of(several) == ["layers:0", "layers:1", narrow, f"{narrow},heads=1", "conv", "static", "linear"]


@pytest.mark.parametrize(
    ("layers", "gated", "cuts"),
    [
        (
            6,
            False,
            [
                "layers:0,1,5",
                "layers:0,1,2,5,ffn=12",
                "layers:0,1,5,ffn=12",
                "layers:0,1,5,ffn=12,heads=1",
                "layers:0,5,ffn=12",
                "layers:5,ffn=12",
            ],
        ),
        (
            7,
            False,
            [
                "layers:0,1,6",
                "layers:0,1,2,6,ffn=12",
                "layers:0,1,6,ffn=12",
                "layers:0,1,6,ffn=12,heads=1",
                "layers:0,6,ffn=12",
                "layers:6,ffn=12",
            ],
        ),
        (6, True, ["layers:0,1,5", "layers:0,5"]),  # no other layer can be ModernBERT's first, which lacks a norm
        (1, False, ["layers:0", "layers:0,ffn=12", "layers:0,ffn=12,heads=1"]),
    ],
)
def test_steps_of_the_curve_are_narrow_where_the_teacher_can_be(
    layers: int, gated: bool, cuts: list[str], tmp_path: Path
) -> None:
    kind = "ModernBertConfig" if gated else "BertConfig"
    sizes: Any = {"num_hidden_layers": layers, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    getattr(transformers, kind)(vocab_size=50, pad_token_id=0, **sizes).save_pretrained(tmp_path / "teacher")
    config = tiny_runs.config_for(tmp_path, tmp_path / "teacher")
    assert curve_of(config) == [cuts[0], "teacher", *cuts[1:], "conv", "static", "linear"]


@pytest.mark.slow
def test_rows_teacher_and_targets_are_made_once(made: tuple[Config, FrontierFacts]) -> None:
    """Would catch a teacher that every point trains again, and a copy of its weights for each."""
    config, _ = made
    first = root_of(config)
    points = sorted((first / "frontier").iterdir())
    assert len(points) == 2
    for stage in ("data", "baselines", "teacher", "targets"):
        record = (first / stage / "stage.json").stat()
        for point in points:
            assert os.path.samestat((point / stage / "stage.json").stat(), record)
    students = {(root / "student" / "stage.json").stat().st_ino for root in (first, *points)}
    assert len(students) == 3


@pytest.mark.slow
def test_the_same_call_again_does_nothing(made: tuple[Config, FrontierFacts], monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = made

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "time_in_turns", never)
    before = {path: path.stat().st_mtime_ns for path in root_of(config).rglob("stage.json")}
    assert frontier(config) == facts
    assert {path: path.stat().st_mtime_ns for path in root_of(config).rglob("stage.json")} == before


@pytest.mark.slow
def test_what_all_points_need_fails_once(
    made: tuple[Config, FrontierFacts], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an earlier frontier left its stages. Would catch a teacher's training that fails, and is tried again
    for every student."""
    shutil.copytree(root_of(made[0]), tmp_path / "run", symlinks=True)
    calls = []

    def failing(config: Config, **_: Any) -> Any:
        calls.append(config.student.model)
        raise KdcError("the teacher does not beat the majority answer")

    monkeypatch.setattr(module, "compress", failing)
    with pytest.raises(KdcError, match="the teacher"):
        frontier(config_of(finished, tmp_path / "run"))
    assert len(calls) == 1


@pytest.mark.slow
def test_students_that_fail_are_named_and_the_others_go_on(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one too. Would catch a curve that is lost with one student, a page below the directory that is told of,
    and answers counted as looks at other rows."""

    def failing(config: Config, **how: Any) -> Any:
        if config.student.model == "layers:1" and how.get("until") is None:
            raise KdcError("it learned nothing", remedy="train longer")
        if config.student.model == "static":
            raise KdcError("the student gives every text the same answer", given="accuracy 50.0")
        return compress(config, **how)

    monkeypatch.setattr(module, "compress", failing)
    monkeypatch.setattr(module, "curve_of", lambda _: ["layers:1", "static", "linear"])
    facts = frontier(config_of(finished, tmp_path / "run", **{"student.model": "layers:1"}))
    assert [point.artifact for point in facts.points] == ["frontier/linear/artifact"]
    assert [(left.student, left.why) for left in facts.left] == [
        ("layers:1", "it learned nothing; train longer"),
        ("static", "the student gives every text the same answer (accuracy 50.0)"),
    ]
    assert "every text the same answer" in (tmp_path / "run" / "frontier.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "run" / "frontier").rglob("frontier.html"))
    (looks,) = json.loads((tmp_path / "run" / "looks.json").read_text(encoding="utf-8")).values()
    assert len(looks) == 1


@pytest.mark.slow
def test_points_of_a_teacher_that_was_trained_again_are_made_again(
    made: tuple[Config, FrontierFacts], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are the same and the weights may not be. Would catch two teachers on one page."""
    root = tmp_path / "run"
    monkeypatch.setattr(module, "curve_of", lambda _: ["layers:1", "linear"])
    shutil.copytree(root_of(made[0]), root, symlinks=True)
    config = config_of(finished, root)
    tiny_runs.compress(config, start_from="teacher", until="targets")
    frontier(config)
    runs = (root, root / "frontier" / "linear")
    assert len({(run / "teacher" / "stage.json").read_bytes() for run in runs}) == 1
    students = [(run / "student" / "stage.json").stat().st_mtime_ns for run in runs]
    assert min(students) > (root / "teacher" / "stage.json").stat().st_mtime_ns


def test_the_hours_are_shared_among_the_students_that_are_trained(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch hours for each in place of hours for all."""
    given = []
    monkeypatch.setattr(module, "compress", lambda *_, **__: None)
    monkeypatch.setattr(module, "_make", lambda student, config, *_: given.append(config.student.hours))
    monkeypatch.setattr(module, "_facts", lambda *_: None)
    monkeypatch.setattr(module, "curve_of", lambda _: ["layers:1", "teacher", "conv", "static"])
    frontier(config_of(finished, tmp_path / "run", **{"student.hours": 1.0}))
    assert given == pytest.approx([1 / 3] * 4)


def test_limits_are_refused_before_anything_is_done(finished: Finished, tmp_path: Path) -> None:
    limits = {"contract.max_drop": 1.0, "contract.max_size_mb": 20}
    with pytest.raises(InputError, match="takes no limits"):
        frontier(config_of(finished, tmp_path / "run", **limits))
    assert not (tmp_path / "run" / "data").exists()


def test_a_curve_of_a_student_without_layers_has_the_others_without(finished: Finished, tmp_path: Path) -> None:
    """Their settings are made of this one's, which suit no layers."""
    config = config_of(finished, tmp_path, **{"student.model": "static"})
    assert curve_of(config) == ["static", "teacher", "conv", "linear"]


def test_several_processes_are_refused(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "here", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="one process"):
        frontier(config_of(finished, tmp_path / "run"))


def a_point(student: str, score: float, latency: float, rows: float = 1.0, size: float = 1.0) -> Point:
    return Point(
        student=student,
        artifact="artifact",
        sha256="0",
        variant="int8",
        score=score,
        interval=(score - 1, score + 1),
        difference=0.0,
        difference_interval=(-1.0, 1.0),
        latency_p50_ms=latency,
        latency_p95_ms=latency,
        latency_interval=None,
        rows_per_second=rows,
        rows_interval=None,
        size_mb=size,
        parameters=1,
        training_seconds=None,
    )


def test_the_front_holds_what_no_other_point_beats() -> None:
    """By the definition, over all pairs, with many ties. Would catch a cost in the wrong direction."""
    draw = random.Random(5)
    for _ in range(200):
        points = [
            a_point(str(place), *(float(draw.randint(1, 4)) for _ in range(4))) for place in range(draw.randint(1, 7))
        ]
        for name, worse in {
            "latency": lambda one, other: one.latency_p50_ms > other.latency_p50_ms,
            "throughput": lambda one, other: one.rows_per_second < other.rows_per_second,
            "size": lambda one, other: one.size_mb > other.size_mb,
        }.items():
            beaten = {
                one.student
                for one in points
                for other in points
                if not worse(other, one) and one.score <= other.score and (worse(one, other) or one.score < other.score)
            }
            assert {point.student for point in front(points, COSTS[name][0])} == {
                point.student for point in points
            } - beaten


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]


@pytest.mark.slow
def test_the_page_stands_alone_and_escapes_what_it_is_given(made: tuple[Config, FrontierFacts], tmp_path: Path) -> None:
    """Names of tasks and students come from outside."""
    _, facts = made
    hostile = "<script>alert(1)</script>"
    write_frontier(tmp_path, facts.model_copy(update={"task": hostile, "points": (a_point(hostile, 90, 1.0),)}))
    text = (tmp_path / "frontier.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert "script" not in page.open
    assert all(address.startswith("#") for address in page.addresses)
    assert json.loads((tmp_path / "frontier.json").read_text(encoding="utf-8"))["task"] == hostile
    markdown = (tmp_path / "frontier.md").read_text(encoding="utf-8")
    assert markdown.count("<script>") == markdown.count("\\<script>") > 0


def facts_of(*points: Point, left: tuple[Left, ...] = ()) -> FrontierFacts:
    return FrontierFacts(
        task="t",
        metric="accuracy",
        rows=10,
        groups=10,
        teacher=90.0,
        floors={"tfidf": 60.0},
        points=points,
        left=left,
        cpu="a CPU",
        threads=1,
        device="cpu",
    )


def test_facts_are_of_the_same_artifacts_measured_in_the_same_place_or_of_others() -> None:
    """Would catch a page that stays though a student was made anew, is there no more, or was measured elsewhere."""
    one, two = (a_point("static", 72.0, 0.1).model_copy(update={"sha256": sha256}) for sha256 in "ab")
    why, other = (Left(student=student, why="it learned nothing") for student in ("conv", "linear"))
    facts, where = facts_of(one, two, left=(why,)), {"cpu": "a CPU", "threads": 1, "device": "cpu"}
    assert facts.is_of(["a", "b"], [why], where)
    for sha256s in (["a"], ["b"], ["b", "a"], ["0", "b"], ["c", "b"], ["a", "b", "c"], []):
        assert not facts.is_of(sha256s, [why], where)
    for left in ([], [other], [why, other]):
        assert not facts.is_of(["a", "b"], left, where)
    assert facts_of(one, two).is_of(["a", "b"], [], where)
    for change in ({"cpu": "A CPU"}, {"cpu": "b CPU"}, {"threads": 0}, {"threads": 2}, {"device": "cuda"}):
        assert not facts.is_of(["a", "b"], [why], where | change)


def test_facts_that_are_written_are_read_again(tmp_path: Path) -> None:
    """Would catch a version of the file that its own reader refuses: every frontier would be measured again."""
    facts = facts_of(a_point("static", 72.0, 0.1), left=(Left(student="conv", why="it learned nothing"),))
    write_frontier(tmp_path, facts)
    assert read_facts(tmp_path) == facts


@pytest.mark.parametrize(("labels", "told"), [("model:GPT-X", "agreement with GPT-X's labels"), (None, None)])
def test_the_page_says_whose_labels_the_scores_are_by(labels: str | None, told: str | None, tmp_path: Path) -> None:
    write_frontier(tmp_path, facts_of(a_point("static", 72.0, 0.1)).model_copy(update={"labels": labels}))
    for name in ("frontier.html", "frontier.md"):
        text = html.unescape((tmp_path / name).read_text(encoding="utf-8"))
        assert (told is not None and told in text) or (told is None and "labels" not in text), name


def test_the_table_tells_the_most_accurate_first_and_names_the_fronts() -> None:
    facts = facts_of(a_point("static", 72.0, 0.1, 900, 2.0), a_point("teacher", 90.0, 2.0, 50, 20.0))
    head, *rows = table(facts)
    assert [row[0] for row in rows] == ["teacher, int8", "static, int8"]
    assert [row[head.index("kept %")] for row in rows] == ["100.0", "80.0"]
    assert {row[head.index("on the front of")] for row in rows} == {"latency, throughput, size"}


def test_a_finished_stage_is_taken_over_only_where_it_is_the_same(finished: Finished, tmp_path: Path) -> None:
    """Also where the disk has no second names for a file. Would catch a teacher of other rows in this run."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    shutil.copytree(finished.folder / "run", first, symlinks=True)
    same = tiny_runs.config_for(finished.folder, finished.teacher, flags={"run.out": second})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", _no_links)
        result = tiny_runs.compress(same, until="teacher", siblings=(first,))
    assert result.stages["teacher"].skipped
    assert (second / "teacher" / "model" / "model.safetensors").read_bytes() == (
        first / "teacher" / "model" / "model.safetensors"
    ).read_bytes()
    other = tiny_runs.config_for(finished.folder, finished.teacher, "teacher.epochs=9", flags={"run.out": third})
    result = tiny_runs.compress(other, until="teacher", siblings=(first, second))
    assert result.stages["data"].skipped
    assert not result.stages["teacher"].skipped


def test_taking_over_that_was_cut_off_counts_for_nothing(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk where files have to be copied. Would catch half of a teacher that says it is whole."""
    first, second = finished.folder / "run", tmp_path / "second"
    config = tiny_runs.config_for(finished.folder, finished.teacher, flags={"run.out": second})

    def full(source: str, target: str) -> None:
        if source.endswith("model.safetensors"):
            raise OSError(28, "No space left on device")
        shutil.copy2(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_link", full)
        with pytest.raises(shutil.Error, match="No space left"):
            tiny_runs.compress(config, until="teacher", siblings=(first,))
    tiny_runs.compress(config, until="teacher", siblings=(first,))
    place = Path("teacher") / "model" / "model.safetensors"
    assert (second / place).read_bytes() == (first / place).read_bytes()


def _no_links(source: str, target: str) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_from_python_its_points_lead_to_their_artifacts(finished: Finished, tmp_path: Path) -> None:
    """And what the command line prints. Would catch a path that leads nowhere, and a report of a run that made none."""
    facts = facts_of(a_point("static", 72.0, 0.1), left=(Left(student="layers:0", why="it learned nothing"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_frontier", lambda *_, **__: facts)
        made = kdc.frontier(
            train=finished.folder / "train.csv",
            text="first",
            label="label",
            teacher={"model": str(finished.teacher)},
            out=tmp_path,
        )
    assert made.artifact("static") == tmp_path / "artifact"
    assert not (tmp_path / "report.html").exists()
    told = render_frontier(made)
    assert "left out: layers:0: it learned nothing" in told
    assert f"static: {tmp_path / 'artifact'}" in told
    assert str(tmp_path / "frontier.html") in told
