"""Which rows belong together: units that a slice must not part, and that an interval must not count as independent."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_PROMPT_ROWS, _PROMPT_PART = 20, 20  # a text that stands in more pairs than so many, and than this part, is a prompt


def connect(
    texts: Ints, sides: Ints | None = None, groups: Ints | None = None, near: tuple[Ints, Ints] | None = None
) -> Ints:
    """Number the units of rows that belong together, so that a slice must not part them and an interval must not count
    them as independent: rows with the same text, with one text of a pair in common, of the same group, or near each
    other.

    A text that more than a twentieth of all pairs have is a prompt, and ties nothing together; nor does a short one
    (`rows.sides_of`).

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
    ties = [(texts, rows)]
    if sides is not None:
        ties.append((sides.T.reshape(-1), max(_PROMPT_ROWS, rows // _PROMPT_PART)))
    if groups is not None:
        ties.append((groups, rows))
    members, values, nodes = [], [], rows
    for each, most in ties:
        place, counts = np.unique(each, return_inverse=True, return_counts=True)[1:]
        ties_rows = counts[place.reshape(-1)] <= most
        members.append((np.arange(len(each)) % rows)[ties_rows])
        values.append(nodes + place.reshape(-1)[ties_rows])
        nodes += len(counts)
    if near is not None:
        members.append(near[0])
        values.append(near[1])
    edges = (np.concatenate(members), np.concatenate(values))
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(nodes, nodes))
    return _by_first_row(connected_components(graph, directed=False)[1][:rows].astype(np.int64))


def _by_first_row(ids: Ints) -> Ints:
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
