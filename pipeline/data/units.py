"""Which rows belong together: units that a slice must not part, and that an interval must not count as independent."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_PROMPT_ROWS, _PROMPT_PART = 20, 20  # a text that stands in more pairs than so many, and than this part, is a prompt


def connect(
    texts: Ints, sides: Ints | None = None, groups: Ints | None = None, near: tuple[Ints, Ints] | None = None
) -> Ints:
    """Number the units of rows that belong together: rows with the same text, with one text of a pair in common, of the
    same group, or near each other.

    A text that more than a twentieth of all pairs have is a prompt, and ties nothing together; nor does a short one
    (`fields.sides_of`).

    Args:
        texts: (rows,) a number for each text or pair.
        sides: (rows, 2) a number for each text of a pair; None if rows are no pairs.
        groups: (rows,) a number for each group; None if rows have no group.
        near: pairs of rows, see `overlap.near_rows`.

    Returns:
        (rows,) unit of each row, numbered in the order of their first rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(texts)
    ties = [(texts, rows)]  # numbers of the rows, and how many rows a number may tie together
    if sides is not None:
        ties.append((sides.T.reshape(-1), max(_PROMPT_ROWS, rows // _PROMPT_PART)))
    if groups is not None:
        ties.append((groups, rows))
    edges = [] if near is None else [near]
    for numbers, most in ties:
        _, first, inverse, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
        tied = np.flatnonzero(counts[inverse] <= most)
        edges.append((tied % rows, first[inverse[tied]] % rows))  # each row to the first one with its number
    row, other = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, other)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)
