"""Synthetic rows of a wanted length, for measuring: latency depends on the number of tokens, not on what they say."""

from collections.abc import Callable

from kdc.serving.engine.tokenizing import Text


def row_of(length: int, tokens: Callable[[Text], int], *, is_pair: bool) -> Text:
    """Make a row of `length` tokens, or as near to it as whole words come. `tokens` counts those of a row.

    Both numbers include special tokens.
    """

    def words(count: int) -> Text:
        if not is_pair:
            return " ".join(["a"] * max(1, count))
        return " ".join(["a"] * max(1, count // 2)), " ".join(["a"] * max(1, count - count // 2))

    one, two = tokens(words(2)), tokens(words(4))
    return words(2 + max(0, round((length - one) * 2 / max(1, two - one))))
