"""Cuts slices of rows that keep the share of every class and never part equal rows. Pure functions on arrays."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

TUNE_SHARE, TUNE_LEAST, TUNE_MOST = 0.1, 300, 2000
HELD_OUT_SHARE = 0.1


def tune_size(rows: int) -> int:
    """Rows of the tuning slice: a tenth of `rows`, at least 300 and at most 2,000, and never more than half of them."""
    return min(max(round(rows * TUNE_SHARE), TUNE_LEAST), TUNE_MOST, rows // 2)


def connect(texts: Ints, groups: Ints | None) -> Ints:
    """Number the units that a slice must not part: rows with the same text, and rows of the same group.

    Args:
        texts: (rows,) a number for each text.
        groups: (rows,) a number for each group; None if rows have no group.

    Returns:
        (rows,) unit of each row, numbered in the order of their first rows.
    """
    text_ids = np.unique(texts, return_inverse=True)[1].reshape(-1)
    if groups is None:
        return _by_first_row(text_ids)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group_ids = np.unique(groups, return_inverse=True)[1].reshape(-1) + text_ids.max() + 1
    nodes = int(group_ids.max()) + 1
    edges = coo_array((np.ones(len(texts), dtype=np.int8), (text_ids, group_ids)), shape=(nodes, nodes))
    return _by_first_row(connected_components(edges, directed=False)[1][text_ids].astype(np.int64))


def _by_first_row(ids: Ints) -> Ints:
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def shares(counts: Ints, size: int, *, at_least: int = 0, leave: int = 0) -> Ints:
    """Split `size` rows over the classes in proportion to their counts, by the method of largest remainders.

    Args:
        counts: (classes,) rows of each class.
        size: rows to take in all.
        at_least: rows to take of every class that has so many, unless that makes more than `size` in all.
        leave: rows to leave of every class.

    Returns:
        (classes,) rows to take; their sum is `size` where the limits allow it.
    """
    most = np.maximum(counts - leave, 0)
    least = np.minimum(at_least, most)
    if int(least.sum()) > size:
        least = np.zeros_like(most)
    exact = counts * (min(size, int(counts.sum())) / max(int(counts.sum()), 1))
    taken = np.clip(np.floor(exact).astype(np.int64), least, most)
    while (missing := size - int(taken.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = taken < most if step > 0 else taken > least
        if not movable.any():
            break
        gap = np.where(movable, step * (exact - taken), -np.inf)
        best = np.argsort(-gap, kind="stable")[: min(abs(missing), int(movable.sum()))]
        taken[best] += step
    return taken


def pick_slice(units: Ints, classes: Ints, size: int, seed: int) -> Mask:
    """Choose whole units with about `size` rows, the classes in proportion, and leave a row of every class.

    Args:
        units: (rows,) unit of each row, numbered without gaps from 0.
        classes: (rows,) class of each row, from 0; all 0 if there is nothing to stratify by.
        size: rows to choose; fewer are chosen if large units or rare classes do not allow so many.
        seed: of the choice.

    Returns:
        (rows,) True for the chosen rows.
    """
    counts = np.bincount(classes)
    order = np.argsort(units, kind="stable")
    ends = np.cumsum(np.bincount(units))
    starts = np.concatenate([[0], ends[:-1]])
    chosen = np.zeros(len(units), dtype=np.bool_)
    taken = np.zeros_like(counts)
    wanted = shares(counts, size, leave=1)
    # Units with rare classes come first, as only they can fill those shares.
    by_count = np.argsort(counts, kind="stable")
    rarest = np.minimum.reduceat(np.argsort(by_count, kind="stable")[classes[order]], starts)
    shuffled = np.random.default_rng(seed).permutation(len(ends))
    shuffled = shuffled[np.argsort(rarest[shuffled], kind="stable")]
    blocks = np.split(shuffled, np.cumsum(np.bincount(rarest, minlength=len(counts)))[:-1])
    # First come units that fit every class's share. What large units leave open is filled with up to half of a class.
    for limit in (wanted, np.maximum(wanted, counts // 2)):
        for label, block in zip(by_count, blocks, strict=True):
            for unit in block:
                if taken[label] >= limit[label] or taken.sum() >= wanted.sum():
                    break
                rows = order[starts[unit] : ends[unit]]
                after = taken + np.bincount(classes[rows], minlength=len(counts))
                if not chosen[rows[0]] and (after <= limit).all() and after.sum() <= size:
                    taken = after
                    chosen[rows] = True
    return chosen


def sample(classes: Ints, eligible: Mask, size: int, seed: int) -> Mask:
    """Choose `size` of the eligible rows at random, the classes in proportion, at least one row of each.

    Returns:
        (rows,) True for the chosen rows.
    """
    if size >= int(eligible.sum()):
        return eligible
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(eligible))
    rows = rows[np.argsort(classes[rows], kind="stable")]
    counts = np.bincount(classes[rows])
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each row within its class
    chosen = np.zeros(len(classes), dtype=np.bool_)
    chosen[rows[rank < np.repeat(shares(counts, size, at_least=1), counts)]] = True
    return chosen
