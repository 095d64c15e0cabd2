"""Units of dependent rows: splits keep them whole, and confidence intervals take them as dependent."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_PROMPT_ROWS, _PROMPT_PART = 20, 20  # a prompt exceeds both


def connect(
    texts: Ints, sides: Ints | None = None, groups: Ints | None = None, near: tuple[Ints, Ints] | None = None
) -> Ints:
    """Number the units of rows that share a text (or one of a pair) or a group, or are near.

    Prompts (texts in over 1/20 of all pairs) and short texts (`fields.sides_of`) connect nothing.

    Args:
        texts: (rows,) hashes.
        sides: (rows, 2) hashes of a pair's texts.
        groups: (rows,) hashes.
        near: see `overlap.near_rows`.

    Returns:
        (rows,) numbered by first row.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(texts)
    ties = [(texts, rows)]  # hashes, and how many rows one may connect
    if sides is not None:
        ties.append((sides.T.reshape(-1), max(_PROMPT_ROWS, rows // _PROMPT_PART)))
    if groups is not None:
        ties.append((groups, rows))
    edges = [] if near is None else [near]
    for numbers, most in ties:
        _, first, inverse, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
        tied = np.flatnonzero(counts[inverse] <= most)
        edges.append((tied % rows, first[inverse[tied]] % rows))  # to the first with this hash
    row, other = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, other)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)
