"""A student with narrower layers in a run: which neurons and heads it has, and that a run directory knows it from a
whole one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from conftest import ALL_MODELS, Finished

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.models import loading
from kdc.pipeline.models.cutting import Cut, cut
from kdc.pipeline.models.units import attentions, feed_forwards, first_units
from kdc.pipeline.training import adapters, students
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.importance import unit_importance


def narrow(finished: Finished, run: Path, student: str) -> Config:
    """The settings of the finished run for another student, in a copy of its directory."""
    flags = ALL_MODELS | {"run.out": run, "student.model": student}
    return tiny_runs.config_for(finished.folder, finished.teacher, flags=flags)


@pytest.mark.slow
def test_the_student_has_the_units_that_matter_for_the_training_rows(finished: Finished, tmp_path: Path) -> None:
    """Would catch neurons or heads that are chosen by other rows or not at all, a whole student that is taken for a
    narrow one of the same layers, and a width that is refused only after the teacher's training, or not at all where
    the rows are there already."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder / "run", run, symlinks=True)

    begun = shutil.copytree(run, tmp_path / "begun", symlinks=True, ignore=shutil.ignore_patterns("teacher"))
    with pytest.raises(InputError, match="ffn= comes once"):
        tiny_runs.compress(narrow(finished, begun, "layers:1,ffn=999"), until="student")
    assert not (begun / "teacher").exists()
    for student, width, heads in (("layers:1,ffn=9", 9, 2), ("layers:1,ffn=9,heads=1", 9, 1), ("layers:1", 32, 2)):
        stages = tiny_runs.compress(narrow(finished, run, student), until="student").stages
        assert stages["teacher"].skipped
        base = loading.load_plain(run / "student" / "base")
        whole = cut(loading.load_plain(run / "teacher" / "model"), Cut((1,)), first_units)
        rows = Rows.read(open_data(run / "data"), "teacher", ["train"])
        for find, count, size in ((feed_forwards, width, 1), (attentions, heads, 8)):
            (part,), (own,) = find(whole), find(base)
            units = unit_importance(whole, [part], rows, pad_id=0)[0].topk(count).indices.sort().values
            if count < part.units:
                assert units.tolist() != list(range(count))
            numbers = [unit * size + place for unit in units.tolist() for place in range(size)]
            for maker, own_maker in zip(part.makers, own.makers, strict=True):
                assert torch.equal(own_maker.weight, maker.weight[numbers])
                assert torch.equal(own_maker.bias, maker.bias[numbers])
            assert torch.equal(own.reader.weight, part.reader.weight[:, numbers])


@pytest.mark.slow
def test_a_training_that_goes_on_keeps_its_neurons(finished: Finished, tmp_path: Path, monkeypatch: Any) -> None:
    """The checkpoint's adapters are of the neurons that it began with; another machine might choose others."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder / "run", run, symlinks=True)
    config = narrow(finished, run, "layers:1,ffn=9,heads=1")

    class Killed(Exception):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save_adapters", killed)
        with pytest.raises(Killed):
            tiny_runs.compress(config, until="student")
    before = loading.load_plain(run / "student.partial" / "base").state_dict()
    monkeypatch.setattr(students, "unit_importance", lambda model, parts, *_, **__: first_units(model, parts))
    result = tiny_runs.compress(config, until="student")
    after = loading.load_plain(run / "student" / "base").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    metrics = json.loads((run / "student" / "stage.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["resumed_from"] > 0
    assert not result.stages["student"].skipped
