"""When a stage is done again."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import config_for

from kdc.common.errors import KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.results.base import StageResult
from kdc.pipeline.rundir import folders
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.folders import Stage, forget, kept_folder, run_stage
from kdc.pipeline.rundir.record import read_result


class Counted(StageResult):
    """What the stage hands on."""

    STAGE = "count"

    rows: int


def stage_of(rows: int) -> Stage:
    def work(run: Run, out: Path) -> Counted:
        return Counted(rows=rows)

    def is_intact(root: Path) -> bool:
        return read_result(root, Counted).rows == rows

    return Stage(Counted, work, lambda run: {}, after=(), is_intact=is_intact)


def test_a_record_that_no_result_can_be_read_from_is_refused_and_says_what_to_run(tmp_path: Path) -> None:
    run = Run(tmp_path, config_for(tmp_path, tmp_path))
    run_stage(run, stage_of(3), Reporter(quiet=True))
    file = tmp_path / "count" / "stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {}}))
    with pytest.raises(KdcError, match="of another version of kdc") as caught:
        run_stage(run, stage_of(3), Reporter(quiet=True))
    assert "--from count" in str(caught.value.remedy)


def test_a_stage_that_lost_what_it_keeps_elsewhere_is_redone(tmp_path: Path) -> None:
    run = Run(tmp_path, config_for(tmp_path, tmp_path))
    run_stage(run, stage_of(3), Reporter(quiet=True))
    assert not run_stage(run, stage_of(4), Reporter(quiet=True)).skipped


class Told(Reporter):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[tuple[Any, ...]] = []

    def started(self, stage: str, why: str) -> None:
        self.lines.append((stage, why))

    def finished(self, stage: str, seconds: float, headline: str) -> None:
        self.lines.append((stage, "done", seconds, headline))

    def skipped(self, stage: str) -> None:
        self.lines.append((stage, "skipped"))


def writing(setting: int = 1, work: Callable[[Path], object] = lambda out: None, **more: Any) -> Stage:
    """A stage with a setting, which writes a file into its folder, a link, and checkpoints."""

    def do(run: Run, out: Path) -> Counted:
        work(out)
        (out / "rows").write_text(str(setting))
        (out / "same").symlink_to("rows")
        (out / "checkpoints").mkdir(exist_ok=True)
        return Counted(rows=setting, headline="counted")

    return Stage(Counted, do, lambda run: {"setting": setting}, **({"after": ()} | more))


def done(root: Path, stage: Stage, **run: Any) -> list[tuple[Any, ...]]:
    """What the reporter is told of a stage that is run."""
    run_stage(Run(root, config_for(root, root), **run), stage, told := Told())
    return [line[:2] for line in told.lines]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_stage_is_skipped_until_its_settings_change_and_says_why_it_is_done(tmp_path: Path) -> None:
    assert done(tmp_path, writing(1)) == [("count", "new"), ("count", "done")]
    assert done(tmp_path, writing(1)) == [("count", "skipped")]
    assert done(tmp_path, writing(2)) == [("count", "its settings or inputs changed"), ("count", "done")]
    assert (tmp_path / "count" / "rows").read_text() == "2"
    assert names(tmp_path) == ["count"]
    assert names(tmp_path / "count") == ["fingerprint", "rows", "same", "stage.json"]  # and no checkpoints


def test_a_stage_is_redone_with_a_stage_before_it_and_ignores_one_that_is_not_wanted(tmp_path: Path) -> None:
    after = writing(1, after=("before", "unwanted"))
    for before, word in (("a", "done"), ("a", "skipped"), ("b", "done")):
        assert done(tmp_path, after, fingerprints={"before": before, "beside": word})[-1] == ("count", word)


def test_a_record_has_the_settings_the_result_and_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint is the SHA-256 of plain JSON: another one would redo every finished run."""
    clock = [5.0]
    monkeypatch.setattr(folders, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run, told = Run(tmp_path, config_for(tmp_path, tmp_path), fingerprints={"before": "b"}), Told()
    made = run_stage(run, writing(1, lambda out: clock.append(clock.pop() + 12.347), after=("before",)), told)
    text = json.dumps([2, "count", {"setting": 1}, ["b"]])
    assert json.loads((tmp_path / "count" / "stage.json").read_text()) == {
        "stage": "count",
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "settings": {"setting": 1},
        "metrics": {"rows": 1, "headline": "counted"},
        "seconds": 12.35,
        "peak_memory_bytes": made.peak_memory_bytes,
    }
    assert not made.skipped
    assert run.fingerprints == {"before": "b", "count": made.fingerprint}
    assert told.lines[-1] == ("count", "done", 12.35, "counted")


def killed(out: Path) -> None:
    (out / "begun").write_text("here")
    raise InterruptedError


def test_a_stage_that_was_cut_off_goes_on_in_its_folder_and_with_other_settings_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        done(tmp_path, writing(1, killed))
    assert names(tmp_path) == ["count.partial"]
    begun: list[bool] = []
    stage = writing(1, lambda out: begun.append((out / "begun").exists()))
    assert done(tmp_path, stage) == [("count", "resumes where it stopped"), ("count", "done")]
    with pytest.raises(InterruptedError):
        done(tmp_path, writing(2, killed))
    stage = writing(3, lambda out: begun.append((out / "begun").exists()))
    assert done(tmp_path, stage)[0] == ("count", "its settings or inputs changed")
    assert begun == [True, False]


def test_a_stage_whose_folder_was_not_renamed_is_not_repeated(tmp_path: Path) -> None:
    done(tmp_path, writing(1))
    (tmp_path / "count").rename(tmp_path / "count.partial")
    assert done(tmp_path, writing(1)) == [("count", "skipped")]
    assert names(tmp_path) == ["count"]


def test_a_siblings_folder_is_taken_over_by_links_without_its_mark(tmp_path: Path) -> None:
    """Would catch another sibling's folder, copies that fill the disk, and what was begun before among the files."""
    other, right, mine, *wrong = (tmp_path / name for name in ("other", "right", "mine", *"abcdef"))
    for root in (other, right, mine, *wrong):
        root.mkdir()
    for setting, root in enumerate(wrong, 2):
        done(root, writing(setting))
    done(right, writing(1))
    done(mine, writing(9))
    with pytest.raises(InterruptedError):
        done(mine, writing(8, killed))
    assert done(mine, writing(1), siblings=(other, *wrong, right)) == [("count", "skipped")]
    assert names(mine) == ["count"]
    assert names(mine / "count") == ["rows", "same", "stage.json"]
    for name in ("rows", "stage.json"):
        assert (mine / "count" / name).samefile(right / "count" / name)
    assert (mine / "count" / "same").is_symlink()


def test_a_siblings_folder_is_copied_where_the_disk_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refused)
    for name in ("other", "mine"):
        (tmp_path / name).mkdir()
    done(tmp_path / "other", writing(1))
    assert done(tmp_path / "mine", writing(1), siblings=(tmp_path / "other",)) == [("count", "skipped")]
    assert (tmp_path / "mine" / "count" / "rows").read_text() == "1"
    assert not (tmp_path / "mine" / "count" / "rows").samefile(tmp_path / "other" / "count" / "rows")


def test_a_folder_is_not_taken_over_for_one_that_is_done(tmp_path: Path) -> None:
    for name in ("other", "mine"):
        (tmp_path / name).mkdir()
        done(tmp_path / name, writing(1))
    assert done(tmp_path / "mine", writing(1), siblings=(tmp_path / "other",)) == [("count", "skipped")]
    assert not (tmp_path / "mine" / "count" / "rows").samefile(tmp_path / "other" / "count" / "rows")


def test_the_record_of_another_folder_is_copied_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a copy that is cut off and counts as done."""
    for name in ("other", "mine"):
        (tmp_path / name).mkdir()
    done(tmp_path / "other", writing(1))
    linked: list[str] = []
    monkeypatch.setattr(folders, "_link", lambda source, target: linked.append(shutil.copy2(source, target)))
    done(tmp_path / "mine", writing(1), siblings=(tmp_path / "other",))
    assert [Path(path).name for path in linked] == ["rows", "stage.json"]


def test_a_stage_is_checked_whether_it_is_done_or_skipped(tmp_path: Path) -> None:
    checked: list[Run] = []
    stage = replace(writing(1), check=checked.append)
    done(tmp_path, stage)
    done(tmp_path, stage)
    assert len(checked) == 2


def test_a_stage_that_is_forgotten_begins_anew_and_loses_what_it_keeps(tmp_path: Path) -> None:
    done(tmp_path, writing(1))
    with pytest.raises(InterruptedError):
        done(tmp_path, writing(2, killed))
    kept_folder(tmp_path, "count").mkdir()
    forget(tmp_path, "count")
    assert names(tmp_path) == ["count"]
    assert names(tmp_path / "count") == ["fingerprint", "rows", "same"]
    forget(tmp_path, "count")  # and again
    assert done(tmp_path, writing(1)) == [("count", "new"), ("count", "done")]


def test_what_is_being_removed_does_not_count_as_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a folder that was half removed when the process was killed, and that a stage goes on in."""
    with pytest.raises(InterruptedError):
        done(tmp_path, writing(1, killed))
    monkeypatch.setattr(shutil, "rmtree", lambda *given, **more: None)
    forget(tmp_path, "count")
    assert names(tmp_path / "count.partial") == ["begun"]
