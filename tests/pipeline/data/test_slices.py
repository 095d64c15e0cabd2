"""Slices: the arithmetic of sizes and shares, against values worked out by hand."""

import numpy as np
import pytest

from kdc.pipeline.data.overlap import connect
from kdc.pipeline.data.splits import pick_last, pick_slice, sample, shares, tune_size


@pytest.mark.parametrize(
    ("rows", "size"),
    [(1, 0), (3, 1), (400, 200), (600, 300), (3000, 300), (3626, 363), (12_000, 1200), (20_000, 2000), (67_349, 2000)],
)
def test_tuning_slice_is_a_tenth_within_limits(rows: int, size: int) -> None:
    assert tune_size(rows) == size


@pytest.mark.parametrize(
    ("rows", "most", "size"),
    [
        (4000, 2500, 600),
        (2700, 2500, 300),
        (2900, 2500, 400),
        (67_349, 12_000, 1200),
        (4000, 1000, 500),
        (3000, 9000, 300),
    ],
)
def test_rows_that_are_not_trained_on_make_the_tuning_slice_larger(rows: int, most: int, size: int) -> None:
    assert tune_size(rows, most) == size


@pytest.mark.parametrize(
    ("counts", "size", "limits", "expected"),
    [
        ([60, 40], 10, {}, [6, 4]),
        ([1, 1, 1], 2, {}, [1, 1, 0]),
        ([97, 2, 1], 10, {"at_least": 1}, [8, 1, 1]),
        ([97, 2, 1], 50, {"leave": 1}, [49, 1, 0]),
        ([3, 0, 3], 10, {}, [3, 0, 3]),
        # One of each is three too many: they come from those with the largest shares, at last from the first.
        ([50, 45, 1, 1, 1, 1, 1], 11, {"at_least": 1}, [3, 3, 1, 1, 1, 1, 1]),
        ([1, 1], 5, {"leave": 1}, [0, 0]),
        ([5, 5, 5], 2, {"at_least": 1}, [1, 1, 0]),
        ([0, 0], 3, {}, [0, 0]),
        ([0, 10], 5, {"leave": 1}, [0, 5]),  # of a class without rows none can be left
    ],
)
def test_shares_add_up_within_their_limits(
    counts: list[int], size: int, limits: dict[str, int], expected: list[int]
) -> None:
    assert shares(np.array(counts), size, **limits).tolist() == expected


def test_rows_are_connected_through_texts_and_groups() -> None:
    texts = np.array([7, 8, 7, 9, 5, 6])
    groups = np.array([1, 1, 2, 3, 2, 4])
    assert connect(texts, None, None).tolist() == [0, 1, 0, 2, 3, 4]
    # 0-1 by group 1, 0-2 by text 7, 2-4 by group 2; 3 and 5 stay alone.
    assert connect(texts, None, groups).tolist() == [0, 0, 0, 1, 0, 2]


def test_pairs_are_connected_through_a_text_on_either_side_but_not_through_a_prompt() -> None:
    """Would catch: sides that are numbered apart; a prompt that makes one unit of all rows."""
    rows = np.arange(100)
    sides = np.stack([np.full(100, -1), rows], axis=1)  # every pair begins with the same prompt
    sides[1, 1] = sides[0, 1]  # the same second text
    sides[3] = [sides[2, 1], 777]  # row 2's second text as a first one
    units = connect(rows, sides, None)
    assert units[:4].tolist() == [0, 0, 1, 1]
    assert len(np.unique(units)) == 98


def test_slice_takes_whole_units_in_proportion() -> None:
    classes = np.arange(1000) % 4 // 3  # three of class 0 for each of class 1
    units = np.arange(1000) // 2 * 2 // 2
    chosen = pick_slice(units, classes, np.ones(1000, dtype=np.bool_), 200, seed=3)
    assert chosen.sum() == 200
    assert np.bincount(classes[chosen]).tolist() == [150, 50]
    assert set(np.bincount(units[chosen], minlength=500)) == {0, 2}


def test_slice_leaves_a_row_of_every_class() -> None:
    classes = np.array([0] * 10 + [1] + [2] * 2)
    for seed in range(20):
        chosen = pick_slice(np.arange(13), classes, np.ones(13, dtype=np.bool_), 6, seed)
        assert set(classes[~chosen]) == {0, 1, 2}
        assert np.bincount(classes[chosen], minlength=3).tolist() == [5, 0, 1]  # and takes what can be spared


def test_sample_takes_only_eligible_rows_in_proportion() -> None:
    classes = np.arange(100) % 2
    eligible = np.arange(100) < 50
    chosen = sample(classes, eligible, 20, seed=0)
    assert np.bincount(classes[chosen]).tolist() == [10, 10]
    assert not (chosen & ~eligible).any()
    assert not np.array_equal(chosen, sample(classes, eligible, 20, seed=1))
    assert np.array_equal(sample(classes, eligible, 99, seed=0), eligible)


def test_sample_takes_one_row_of_a_rare_class_and_no_more_than_its_share() -> None:
    classes = np.array([0] * 98 + [1, 1])
    assert np.bincount(classes[sample(classes, np.ones(100, dtype=np.bool_), 10, seed=0)]).tolist() == [9, 1]


def test_no_unit_takes_more_than_half_of_a_class() -> None:
    """Would catch a slice that holds most of a class, in place of the smaller unit that fits too."""
    units = np.repeat([0, 1, 2, 3], [6, 4, 9, 11])  # two of class 0 and two of class 1, all larger than their shares
    classes = np.repeat([0, 1], [10, 20])
    for seed in range(10):
        chosen = pick_slice(units, classes, np.ones(30, dtype=np.bool_), 9, seed)
        assert set(units[chosen]) == {1}


def test_units_that_are_too_large_for_a_share_may_take_half_of_a_class() -> None:
    units, classes = np.repeat(np.arange(4), 5), np.repeat([0, 1], 10)
    chosen = pick_slice(units, classes, np.ones(20, dtype=np.bool_), 8, seed=0)
    assert chosen.sum() == 5
    assert len(set(units[chosen])) == 1


def test_users_who_are_there_all_the_time_give_their_last_rows() -> None:
    """Would catch old rows, which are not chosen, counted as if they were, and an evaluation that leaves nobody."""
    units, times = np.tile(np.arange(100), 10), np.arange(1000.0)
    chosen, older = pick_last(units, times, 100)
    assert 45 <= chosen.sum() <= 100
    assert older.sum() >= 400
    assert times[older].max() <= times[chosen].min()
    assert not set(units[chosen]) & set(units[older])


def test_nothing_can_be_picked_of_nothing() -> None:
    assert not pick_slice(np.arange(6), np.zeros(6, dtype=np.int64), np.zeros(6, dtype=np.bool_), 3, seed=0).any()


def test_the_last_rows_are_whole_units_and_one_that_is_far_too_large_is_passed_by() -> None:
    # Wanted are 3 rows: the latest unit has 2, with the next one's 3 there would be more than 4.5, the third has 1.
    units, times = np.array([0, 0, 1, 1, 1, 2]), np.array([9.0, 8.0, 5.0, 6.0, 5.0, 1.0])
    chosen, older = pick_last(units, times, 3)  # the third latest time is 6
    assert chosen.tolist() == [True, True, False, False, False, False]
    assert older.tolist() == [False, False, True, True, True, True]
    chosen, older = pick_last(units, times, 4)
    assert chosen.tolist() == [True, True, True, True, True, False]
    assert older.tolist() == [False, False, False, False, False, True]


def test_a_unit_that_is_half_as_large_again_counts_among_the_last_rows() -> None:
    units = np.append(np.arange(20), np.full(14, 20))
    assert pick_last(units, np.arange(34.0), 10)[0].nonzero()[0].tolist() == list(range(24, 34))


def test_the_last_rows_are_half_as_many_again_at_the_most() -> None:
    """Would catch a unit that makes them more, one that is larger than that by its old rows, and rows that are not
    counted. Of units by their latest row: one of 15 rows, one of 5, then one of 8 and one of 3 of the same time."""
    sizes = {"large": 15, "first": 5, "too many": 8, "last": 3}
    units = np.repeat(np.arange(64), [*sizes.values(), *[1] * 60])
    times = np.concatenate([[1000], np.full(14, 0.5), np.full(5, 900), np.full(11, 890), np.arange(60)]).astype(float)
    chosen, _ = pick_last(units, times, 8)
    assert sorted(set(units[chosen])) == [1, 3]
    assert chosen.sum() == 8
