"""Rows made up to a length in tokens, for measuring: latency depends on how many there are, not on what they say."""

from __future__ import annotations

from collections.abc import Callable

from kdc.serving.engine.tokenizing import Text


def row_of(length: int, tokens: Callable[[Text], int], *, is_pair: bool) -> Text:
    """A row of so many tokens, or as near as words get to it.

    Args:
        length: wanted.
        tokens: of a row, special tokens included.
        is_pair: whether a row has two texts.
    """

    def words(count: int) -> Text:
        if not is_pair:
            return " ".join(["a"] * max(1, count))
        return " ".join(["a"] * max(1, count // 2)), " ".join(["a"] * max(1, count - count // 2))

    one, two = tokens(words(2)), tokens(words(4))
    return words(2 + max(0, round((length - one) * 2 / max(1, two - one))))
