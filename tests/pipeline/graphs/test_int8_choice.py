"""Which int8 candidate is chosen, and what more is tried where int8 costs something."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdc.pipeline.config.settings import QuantizeSettings
from kdc.pipeline.graphs import int8, int8_trials
from kdc.pipeline.graphs.int8 import Candidate
from kdc.pipeline.graphs.int8_choice import Standard, choose, choose_again, is_faster
from kdc.pipeline.graphs.int8_trials import Trials, with_layers_kept
from kdc.pipeline.graphs.parity import BatchInvariance
from kdc.pipeline.graphs.smoothing import Source
from kdc.pipeline.results.artifact import Int8Choice, Int8Measurement

PLAIN = Candidate("channel-minmax", per_channel=True, ranges="minmax")
LAYERS = [frozenset({f"layer {place}"}) for place in range(20)]
FP32 = Int8Measurement(rows_per_second=100.0)  # 10 ms a row


def standard(*, max_drop: float = 2.0) -> Standard:
    """fp32 has 90.0 points on 1000 rows; up to 0.3 points count as nothing."""
    return Standard("accuracy", fp32_score=90.0, rows=1000, max_drop=max_drop, free_drop=0.3)


def candidate(score: float, milliseconds: float, *, difference: float = 0.0, **more: Any) -> Int8Measurement:
    """A batch-invariant candidate with a graph of its own; fp32 takes 10 ms."""
    fields = {
        "graph": f"of {milliseconds} ms",
        "tune": {"accuracy": score},
        "rows_per_second": 1000 / milliseconds,
        "latency_against_fp32": milliseconds / 10,
        "mean_difference": difference,
        "batch_invariant": True,
        "static": True,
    }
    return Int8Measurement(**(fields | more))


def test_the_fastest_candidate_that_passes_is_chosen() -> None:
    measured = {"slow": candidate(90, 5), "fast": candidate(89.2, 3), "lossy": candidate(80, 1), "fp32": FP32}
    assert choose(measured, standard(max_drop=1)).chosen == "fast"


def test_a_candidate_may_lose_as_much_as_is_allowed_and_no_more() -> None:
    measured = {"exact": candidate(89, 3), "less": candidate(89.5, 5), "fp32": FP32}
    assert choose(measured, standard(max_drop=1)).chosen == "exact"
    assert choose(measured, standard(max_drop=0.99)).chosen == "less"
    assert standard(max_drop=1).is_free(candidate(89, 1, label_changes=50))  # just more than 0.7 points of noise
    assert not standard(max_drop=1).is_free(candidate(89, 1, label_changes=48))
    assert not standard(max_drop=0.99).is_free(candidate(89, 1, label_changes=50))


def test_speeds_are_equal_within_fifteen_percent() -> None:
    near = {"fast": candidate(90, 1 / 1.149, difference=0.1), "near": candidate(90, 1, difference=0.0)}
    assert choose(near, standard()).chosen == "near"
    far = {"fast": candidate(90, 1 / 1.151, difference=0.1), "near": candidate(90, 1, difference=0.0)}
    assert choose(far, standard()).chosen == "fast"


def test_among_candidates_of_equal_speed_the_one_nearest_to_fp32_is_chosen() -> None:
    measured = {
        "a": candidate(89.5, 3.00, difference=0.03),
        "b": candidate(90.2, 3.10, difference=0.02),
        "c": candidate(89.9, 3.40, difference=0.01),
        "d": candidate(90.0, 3.50, difference=0.001),
    }
    assert choose(measured, standard(max_drop=1)).chosen == "c"


@pytest.mark.parametrize("noise", [(3.0, 3.9, 4.5, 4.6), (3.9, 3.0, 4.6, 4.5)])
def test_latencies_that_only_noise_tells_apart_do_not_change_the_choice(noise: tuple[float, ...]) -> None:
    measured = {
        "tensor-a": candidate(90, noise[0], difference=0.02, graph="tensor"),
        "tensor-b": candidate(90, noise[1], difference=0.03, graph="tensor"),
        "channel-a": candidate(90, noise[2], difference=0.01, graph="channel"),
        "channel-b": candidate(90, noise[3], difference=0.01, graph="channel"),
    }
    assert choose(measured, standard(max_drop=1)).chosen == "tensor-a"


def test_a_candidate_that_depends_on_its_batch_is_never_chosen() -> None:
    measured = {"bad": candidate(90, 1, batch_invariant=False), "dynamic": candidate(90, 1, static=False), "fp32": FP32}
    choice = choose(measured, standard())
    assert (choice.chosen, choice.winner, choice.int8) == (None, None, False)
    assert "(not batch-invariant): a CPU loads fp32" in choice.note


def test_where_no_candidate_could_be_made_the_reason_is_said() -> None:
    failed = {name: Int8Measurement(static=True, failed=f"{name} fails") for name in ("a", "z")}
    choice = choose({**failed, "fp32": Int8Measurement(static=True, failed="not one of them")}, standard())
    assert choice.note == "no int8 candidate is eligible (a fails; z fails): a CPU loads fp32"
    long = choose({"a": Int8Measurement(static=True, failed="x" * 999)}, standard())
    assert long.note.count("x") == 300


def test_where_all_candidates_cost_too_much_fp32_is_loaded_and_it_says_so() -> None:
    choice = choose({"lossy": candidate(80, 1), "less": candidate(85, 2)}, standard(max_drop=1))
    assert (choice.chosen, choice.winner, choice.int8) == (None, "less", True)
    assert "at most 1 points (the best lost 5.00)" in choice.note


@pytest.mark.parametrize(("score", "chosen"), [(89.5, "second"), (89.0, "first"), (88.0, "first")])
def test_what_was_chosen_before_stays_unless_another_is_more_accurate(score: float, chosen: str) -> None:
    measured = {"first": candidate(89.0, 5.0, difference=0.1), "second": candidate(score, 1.0)}
    before = Int8Choice(chosen="first", winner="first", int8=True)
    assert choose_again(before, measured, standard()).chosen == chosen


# fp32 has 90.0, the lossy one that was chosen first 89.0; up to 0.3 points count as nothing.
@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({"slow": (90.0, 6.0)}, "slow"),  # a lossy one is not kept for its speed
        ({"slow": (90.0, 6.0), "fast": (89.5, 1.0)}, "slow"),  # one that costs nothing before one that costs less
        ({"slow": (90.0, 6.0), "free": (89.8, 4.0)}, "free"),  # the fastest of those that cost nothing
        ({"slower": (89.5, 6.0), "slow": (89.4, 4.0)}, "slow"),
        ({"dynamic": (90.0, 1.0)}, "first"),
        ({"dynamic": (90.0, 1.0), "slow": (89.5, 6.0)}, "slow"),
    ],
)
def test_what_was_tried_for_a_lossy_int8_is_chosen_by_what_it_costs(
    others: dict[str, tuple[float, float]], chosen: str
) -> None:
    measured = {"fp32": FP32, "first": candidate(89.0, 3.0, difference=0.1)}
    for name, (score, milliseconds) in others.items():
        measured[name] = candidate(score, milliseconds, static=name != "dynamic")
    before = Int8Choice(chosen="first", winner="first", int8=True)
    assert choose_again(before, measured, standard()).chosen == chosen
    if chosen != "first":  # the same where nothing passed before
        measured["first"] = candidate(80.0, 3.0, difference=0.1)
        before = Int8Choice(chosen=None, winner="first", int8=True)
        assert choose_again(before, measured, standard()).chosen == chosen


@pytest.mark.parametrize(
    ("milliseconds", "alone", "faster"),
    [(5.0, 0.5, True), (10.0, 1.0, False), (19.0, 1.9, False), (19.0, 0.9, True), (5.0, 1.1, True)],
)
def test_int8_that_is_slower_than_fp32_is_known_to_be(milliseconds: float, alone: float, faster: bool) -> None:
    assert is_faster(candidate(89.0, milliseconds, latency_against_fp32=alone), FP32) is faster


@pytest.mark.parametrize(
    ("score", "changes", "invariant", "free"),
    [
        (89.8, 0, True, True),
        (89.6, 0, True, False),
        (89.6, 4, True, True),  # 4 changed labels of 1000 rows are 0.2 points of noise
        (88.9, 400, True, False),
        (89.8, 0, False, False),
        (91.0, 9, True, True),
    ],
)
def test_a_cost_counts_as_nothing_within_what_the_slice_can_tell(
    score: float, changes: int, invariant: bool, free: bool
) -> None:
    judged = candidate(score, 1.0, label_changes=changes, batch_invariant=invariant)
    assert standard(max_drop=1.0).is_free(judged) is free


def test_layers_are_kept_the_worthiest_first_until_half_of_them_are() -> None:
    made = list(with_layers_kept(PLAIN, LAYERS, most=10))
    assert [each.keep for each in made] == [frozenset().union(*LAYERS[:count]) for count in (1, 2, 4, 8)]
    assert [each.name for each in made][:2] == ["channel-minmax-keep-1", "channel-minmax-keep-2"]


def trials_of(monkeypatch: pytest.MonkeyPatch, *, free_at: int) -> tuple[Trials, list[Candidate]]:
    """Trials that run no model: a candidate with `free_at` layers in fp32 loses nothing, every other one a point."""
    unused: Any = None
    trials = Trials(Path(), Path(), [], unused, unused, unused, settings=QuantizeSettings(), seed=0)
    trials.standard = standard()
    tried: list[Candidate] = []

    def judge(self: Trials, one: Candidate) -> Int8Measurement:
        tried.append(one)
        score = 90.0 if len(one.keep) >= free_at else 89.0
        difference = 0.1 if one == PLAIN else 0.2
        self.candidates[one.name] = one
        self.measured[one.name] = candidate(score, 1.0, difference=difference, nodes={"wanted": 20})
        return self.measured[one.name]

    def worth(file: Path, one: Candidate, ranges: Any, batches: Sequence[Any]) -> list[frozenset[str]]:
        assert one == PLAIN  # the one nearest to fp32
        return LAYERS

    monkeypatch.setattr(Trials, "judge", judge)
    monkeypatch.setattr(int8_trials, "make_source", lambda *given, **more: Source(Path(), {}))
    monkeypatch.setattr(int8_trials, "layers_by_worth", worth)
    trials.judge(PLAIN)
    return trials, tried


@pytest.mark.parametrize(("free_at", "counts"), [(1, [1]), (3, [1, 2, 4]), (100, [1, 2, 4, 8])])
def test_other_ranges_are_tried_then_layers_in_fp32_until_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, free_at: int, counts: list[int]
) -> None:
    trials, tried = trials_of(monkeypatch, free_at=free_at)
    trials.repair()
    assert [each.name for each in tried[1:3]] == ["channel-entropy", "channel-smooth-percentile"]
    assert [len(each.keep) for each in tried[3:]] == counts


def test_a_winner_whose_answers_depend_on_the_batch_gives_way_and_no_loser_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The bugs to catch: what is kept was never compared alone and in batches; or each candidate is, which takes longer
    # than to make it.
    unused: Any = None
    engines = {name: SimpleNamespace(encode=lambda texts, name=name: [name]) for name in ("best", "next", "last")}
    rows: Any = SimpleNamespace(texts=["a text"], task=SimpleNamespace(kind="classification"))
    trials = Trials(Path(), Path(), [], rows, unused, unused, settings=QuantizeSettings(), seed=0)
    trials.standard = standard()
    trials.engines |= engines  # type: ignore[arg-type]
    for place, name in enumerate(engines):
        trials.measured[name] = candidate(90.0, 1.0, difference=0.1 * place, batch_invariant=None)
    compared: list[str] = []

    def batch_invariance(run: Any, encodings: list[str], **more: Any) -> BatchInvariance:
        compared.extend(encodings)
        return BatchInvariance(0.5, label_flips=1 if encodings == ["best"] else 0, compared_rows=500)

    monkeypatch.setattr(BatchInvariance, "passes", lambda found: found.label_flips == 0)
    monkeypatch.setattr(int8_trials, "batch_invariance", batch_invariance)
    assert trials.choose(choose).chosen == "next"
    assert [trials.measured[name].batch_invariant for name in engines] == [False, True, None]
    assert trials.choose(choose).chosen == "next"
    assert compared == ["best", "next"]  # and none twice


@pytest.mark.parametrize(("exact", "tried"), [(True, False), (False, True), (None, True)])
def test_weights_of_7_bits_are_tried_where_8_bit_products_may_saturate(
    monkeypatch: pytest.MonkeyPatch, exact: bool | None, tried: bool
) -> None:
    monkeypatch.setattr(int8, "cpu", lambda: SimpleNamespace(has_int8_products=exact))
    assert ("channel-minmax-7bit" in [each.name for each in int8.worth_trying()]) is tried
    assert [each.name for each in int8.worth_trying(("channel-minmax", "channel-minmax-7bit"))] == (
        ["channel-minmax", "channel-minmax-7bit"] if tried else ["channel-minmax"]
    )
