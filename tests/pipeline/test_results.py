"""Results of stages as JSON: what is written is read again, also what an older version wrote."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdc.pipeline.results.training import History, ModelResult, TeacherResult, TrainingSummary
from kdc.pipeline.run import STAGES
from kdc.pipeline.rundir.fingerprints import fingerprint_of
from kdc.pipeline.rundir.record import StageRecord

# What version 0.1 wrote as each stage's `stage.json`, on a tiny run; lists and tables are shortened.
RECORDS: dict[str, Any] = json.loads(Path(__file__).with_name("stages_of_0.1.json").read_text(encoding="utf-8"))


def test_a_score_and_a_curve_may_hold_nan() -> None:
    history = History(loss=[(1, 0.5)], score=[(1, math.nan)], tune_loss=[(1, math.inf)])
    training = TrainingSummary(
        best_score=math.nan,
        best_step=1,
        steps=1,
        rows_per_second=1.0,
        seconds=1.0,
        trainable_parameters=1,
        history=history,
    )
    result = ModelResult(tune={"pearson": math.nan}, majority={"pearson": 0.0}, constant=True, training=training)
    one = ModelResult.model_validate(json.loads(json.dumps(result.to_json())))
    two = ModelResult.model_validate_json(result.model_dump_json())
    three = TeacherResult.model_validate(TeacherResult(**result.to_json(), others=(result,)).to_json()).others[0]
    for read in (one, two, three):
        assert math.isnan(read.tune["pearson"])
        assert read.training is not None
        assert math.isnan(read.training.best_score)
        assert math.isnan(read.training.history.score[0][1])
        assert read.training.history.tune_loss == [(1, math.inf)]


OLD_STAGES = [stage for stage in STAGES if stage.name in RECORDS]


def test_records_of_0_1_are_of_all_its_stages() -> None:
    assert set(RECORDS) == {stage.name for stage in STAGES} - {"vocabulary", "baselines", "uncut", "cascade"}


@pytest.mark.parametrize("stage", OLD_STAGES, ids=lambda stage: stage.name)
def test_a_record_of_0_1_is_read_and_written_as_it_was(stage: Any) -> None:
    record = copy.deepcopy(RECORDS[stage.name])
    if contract := record["metrics"].get("contract"):  # it knew nothing else to compare with
        contract["contract"]["against"] = "teacher"
        contract["contract"]["limits"]["require"] = contract["required"] = []
        contract["costs"] |= {"latency_interval": None, "rows_interval": None, "starved": 0.0}
    assert StageRecord(skipped=True, **record).model_dump(mode="json", exclude={"skipped"}) == record
    assert stage.result.model_validate(record["metrics"]).to_json() == record["metrics"]


# The teacher's depends on "labelled", whose settings no record holds.
@pytest.mark.parametrize(
    "stage", [stage for stage in OLD_STAGES if stage.name != "teacher"], ids=lambda stage: stage.name
)
def test_fingerprints_are_those_of_0_1(stage: Any) -> None:
    record = RECORDS[stage.name]
    folders = [{"answered": "data"}.get(name, name) for name in stage.after]  # the same of a student of the teacher
    before = [RECORDS[name]["fingerprint"] for name in folders if name in RECORDS]
    assert fingerprint_of(stage.name, record["settings"], before) == record["fingerprint"]
