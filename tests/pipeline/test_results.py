"""Results of stages as JSON: what is written is read again, and nothing that a result does not have is."""

import json
import math

import pytest
from pydantic import ValidationError

from kdc.pipeline.results.training import History, MergeResult, ModelResult, TeacherResult, TrainingSummary


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
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        precision="fp32",
    )
    scores = {"tune": {"pearson": math.nan}, "majority": {"pearson": 0.0}}
    result = ModelResult(**scores, constant=True, chance=1.0, training=training)
    one = ModelResult.model_validate(json.loads(json.dumps(result.to_json())))
    two = ModelResult.model_validate_json(result.model_dump_json())
    three = TeacherResult.model_validate(TeacherResult(**result.to_json(), others=(result,)).to_json()).others[0]
    for read in (one, two, three):
        assert math.isnan(read.tune["pearson"])
        assert read.training is not None
        assert math.isnan(read.training.best_score)
        assert math.isnan(read.training.history.score[0][1])
        assert read.training.history.tune_loss == [(1, math.inf)]


def test_a_field_that_a_result_does_not_have_is_refused() -> None:
    merged = MergeResult(max_difference=0.0, tolerance=1e-5, difference_from_untrained=0.2)
    assert MergeResult.model_validate(merged.to_json()) == merged
    with pytest.raises(ValidationError, match="Extra inputs"):
        MergeResult.model_validate(merged.to_json() | {"tolerence": 1e-3})
