"""When a stage is done again."""

import json
from pathlib import Path

import pytest
from tiny_runs import config_for

from kdc.common.errors import KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.results.base import StageResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.folders import Stage, run_stage
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
