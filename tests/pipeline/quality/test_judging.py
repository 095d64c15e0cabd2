"""Which variant of an artifact is judged by a contract: chosen by costs and the tuning set, not by the verdict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_models import SINGLE, write_artifact

from kdc.artifact.contract.terms import Contract, Costs, Limits
from kdc.artifact.decision import Abstention
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import Manifest, Variant
from kdc.pipeline.quality import judging
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.quality.judging import EvaluationAnswers, judge_artifact

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LABELS = np.arange(400) % 2
RIGHT = np.eye(2)[LABELS]
HALF_WRONG = np.eye(2)[np.where(np.arange(400) < 200, 1 - LABELS, LABELS)]


class Judged:
    """An artifact of the variants fp32 and int8, whose costs and answers a test sets."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = write_artifact(folder, SINGLE.model_copy(update={"metric": "accuracy"}))
        self.manifest = load_manifest(self.folder)
        self.size_mb = {"fp32": 1.0, "int8": 1.0}
        self.looks: list[Any] = []
        self.timed: list[str] = []  # the variants whose costs were measured
        monkeypatch.setattr(judging, "_costs", self._costs)

    def _costs(self, engine: Any, contract: Contract, rows: Any) -> Costs:
        self.timed.append(engine.variant)
        return Costs(latency_ms=1.0, rows_per_s=1.0, size_mb=self.size_mb[engine.variant])

    def judge(
        self,
        contract: Contract,
        *,
        first: str = "int8",
        int8_allowed: bool = True,
        tuning: dict[str, float] | None = None,
        answered_from: float | None = None,
    ) -> Any:
        students = {"fp32": RIGHT, "int8": HALF_WRONG, "fp32 (cuda)": HALF_WRONG, "int8 (cuda)": RIGHT}
        answers = EvaluationAnswers(["a text"] * 400, LABELS, students | {"teacher": RIGHT}, np.arange(400))

        def look(logits: np.ndarray) -> int:
            self.looks.append(logits)
            return 1

        def with_decisions(manifest: Manifest) -> Manifest:
            abstain = None if answered_from is None else Abstention(threshold=answered_from, aim="fixed")
            return manifest.model_copy(update={"task": manifest.task.model_copy(update={"abstain": abstain})})

        changed, judgement = judge_artifact(
            self.folder,
            self.manifest.model_copy(update={"providers": {CPU: first}}),
            contract,
            answers,
            {name: points - 90.0 for name, points in (tuning or {"fp32": 90.0, "int8": 90.0}).items()},
            device="cpu",
            int8_allowed=int8_allowed,
            look=look,
            with_decisions=with_decisions,
        )
        assert changed.providers[CPU] == judgement.variant
        return judgement


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judged:
    return Judged(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("int8_allowed", "passes", "loads"),
    [(True, "int8", "int8"), (True, "fp32", "fp32"), (False, "fp32", "fp32"), (False, "int8", "fp32")],
)
def test_a_contract_loads_no_int8_that_cost_too_much(
    judged: Judged, int8_allowed: bool, passes: str, loads: str
) -> None:
    judged.size_mb = {name: 1.0 if name == passes else 2.0 for name in ("fp32", "int8")}
    first = "int8" if int8_allowed else "fp32"
    assert (
        judged.judge(Contract(limits=Limits(max_size_mb=1.0)), first=first, int8_allowed=int8_allowed).variant == loads
    )


def test_no_further_variant_is_timed_than_the_first_that_keeps_the_costs(judged: Judged) -> None:
    judged.judge(Contract(limits=Limits(max_size_mb=1.0, max_drop=1.0)))
    assert judged.timed == ["int8"]


@pytest.mark.parametrize(
    ("against", "has_better", "expected"),
    [("best", True, "tfidf"), ("best", False, "teacher"), ("teacher", True, "teacher")],
)
def test_a_student_is_compared_with_what_its_contract_names(against: Any, has_better: bool, expected: str) -> None:
    better = Other("tfidf", HALF_WRONG) if has_better else None
    answers = EvaluationAnswers([], LABELS, {"teacher": RIGHT}, np.arange(400), better)
    assert answers.other(Contract(limits=Limits(max_drop=1.0), against=against)).name == expected


@pytest.mark.parametrize(
    ("training", "available", "expected"),
    [("cuda", [CUDA, CPU], "cuda"), ("cuda", [CPU], "cpu"), ("cpu", [CUDA, CPU], "cpu"), ("mps", [CUDA], "cpu")],
)
def test_a_contract_is_judged_on_the_gpu_that_trained_if_onnxruntime_has_it(
    monkeypatch: pytest.MonkeyPatch, training: str, available: list[str], expected: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    assert judging.judged_device(training) == expected


VARIANT = {name: Variant(file=f"{name}.onnx", size_bytes=1, opset=17, ir=8) for name in ("fp32", "int8", "fp16")}


@pytest.mark.parametrize(
    ("device", "first", "variants", "int8_allowed", "expected"),
    [
        ("cpu", "fp32", ("fp32", "int8"), True, ["fp32", "int8"]),
        ("cpu", "fp32", ("fp32", "int8"), False, ["fp32"]),
        ("cpu", "int8", ("fp32", "int8"), False, ["int8", "fp32"]),
        ("cpu", "int8", ("int8",), True, ["int8"]),
        ("cuda", "fp16", ("fp32", "fp16"), True, ["fp16"]),  # what it names for a GPU is the only one
    ],
)
def test_the_variant_that_the_manifest_names_is_tried_first(
    judged: Judged, device: Any, first: str, variants: tuple[str, ...], int8_allowed: bool, expected: list[str]
) -> None:
    manifest = judged.manifest.model_copy(
        update={"providers": {CPU: first, CUDA: first}, "variants": {name: VARIANT[name] for name in variants}}
    )
    assert judging._in_turn(manifest, device, int8_allowed=int8_allowed) == expected


@pytest.mark.parametrize(
    ("metrics", "expected"), [({"fp16 (cuda)": {}}, ["cascade", "fp16"]), ({}, ["cascade", "fp32"])]
)
def test_beside_a_cascade_a_gpu_tries_the_first_model_alone(
    judged: Judged, metrics: dict[str, Any], expected: list[str]
) -> None:
    cascade = VARIANT["fp32"].model_copy(update={"second": object()})  # whatever it is, it is not alone
    manifest = judged.manifest.model_copy(
        update={"providers": {CUDA: "cascade"}, "variants": VARIANT | {"cascade": cascade}, "metrics": metrics}
    )
    assert judging._in_turn(manifest, "cuda", int8_allowed=True) == expected


def test_the_evaluation_rows_judge_one_variant_though_it_fails_and_another_would_pass(judged: Judged) -> None:
    """Would catch: a second look at the rows, which makes a pass by chance likelier than stated."""
    judgement = judged.judge(Contract(limits=Limits(max_drop=1.0)))
    assert (judgement.variant, judgement.verdict) == ("int8", "fail")
    assert len(judged.looks) == 1


@pytest.mark.parametrize(("int8", "variant"), [(88.0, "fp32"), (89.0, "int8"), (91.0, "int8"), (None, "int8")])
def test_a_variant_that_loses_too_much_on_the_tuning_slice_is_not_the_one_that_is_judged(
    judged: Judged, int8: float | None, variant: str
) -> None:
    tuning = {"fp32": 90.0} | ({} if int8 is None else {"int8": int8})
    judgement = judged.judge(Contract(limits=Limits(max_drop=1.0)), tuning=tuning)
    assert (judgement.variant, judgement.verdict) == (variant, "pass" if variant == "fp32" else "fail")
    assert len(judged.looks) == 1


def test_without_a_limit_on_the_drop_no_look_is_spent(judged: Judged) -> None:
    assert judged.judge(Contract(limits=Limits(max_size_mb=1.0))).quality is None
    assert judged.looks == []


@pytest.mark.parametrize(("on_gpu", "expected"), [(True, 2.0), (False, 1.0)])
def test_a_gpu_is_judged_by_what_it_answered_itself_where_it_did(on_gpu: bool, expected: float) -> None:
    logits = {"fp32": np.full((1, 2), 1.0), "fp32 (cuda)": np.full((1, 2), 2.0), "int8": np.full((1, 2), 3.0)}
    answers = EvaluationAnswers([], np.zeros(1), logits, np.zeros(1, int))
    assert answers.student("fp32", on_gpu=on_gpu)[0, 0] == expected
    assert answers.student("int8", on_gpu=on_gpu)[0, 0] == 3.0


def test_a_model_with_other_decisions_is_another_one_where_these_are_judged(judged: Judged) -> None:
    """Would catch an --abstain that is looked for by the evaluation rows, each try with the error of the first."""
    required, drop = Contract(limits=Limits(require=("accuracy>=0.5",))), Contract(limits=Limits(max_drop=1))
    for contract in (required, drop):
        for answered_from in (0.6, 0.6, 0.999):
            judged.judge(contract, answered_from=answered_from)
    once, again, others, *by_drop = [each.tobytes() for each in judged.looks]
    assert once == again != others
    assert len({*by_drop}) == 1  # what is lost is told without thresholds


def test_a_requirement_of_a_model_without_thresholds_is_no_look_more(judged: Judged) -> None:
    """Would catch decisions that are the answers themselves counted as another model, which `kdc verify` does not."""
    for limits in (Limits(max_drop=1), Limits(max_drop=1, require=("accuracy>=0.5",))):
        judged.judge(Contract(limits=limits))
    first, second = judged.looks
    assert first.tobytes() == second.tobytes()


def test_what_is_required_is_counted_by_the_artifacts_decisions(judged: Judged) -> None:
    contract = Contract(limits=Limits(require=("coverage>=0.5",)))
    (found,) = judged.judge(contract, answered_from=0.999).required
    assert (found.rate.hits, found.rate.of) == (0, 400)
    (found,) = judged.judge(contract, answered_from=0.5).required
    assert (found.rate.hits, found.rate.of) == (400, 400)
