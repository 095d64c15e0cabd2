"""Rows to send: GLUE's, or made-up ones as long."""

import random
from dataclasses import dataclass
from pathlib import Path

from kdc.common.errors import InputError
from kdc.serving.engine.tokenizing import Text

_MADE_UP = 500  # rows
# One token each in BERT-like vocabularies.
_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which
one you were her all she there would their we him been has when who will more no if out so said what up its about
into than them can only other new some could time these two may then do first any my now such like our over man
"""


@dataclass(frozen=True)
class TextSet:
    """Where rows come from.

    Attributes:
        lengths: in tokens: minimum, deciles, maximum.
        first: share of the first text if a row is split.
    """

    file: str
    columns: tuple[str, ...]
    lengths: tuple[int, ...]
    first: float


SETS = {
    "sst2": TextSet("SST-2/dev.tsv", ("sentence",), (2, 10, 14, 17, 19, 22, 25, 28, 32, 38, 53), 0.5),
    "qnli": TextSet("QNLI/dev.tsv", ("question", "sentence"), (13, 28, 33, 37, 41, 45, 48, 53, 57, 67, 149), 0.26),
}


def read_rows(name: str, data: Path | None, *, is_pair: bool) -> list[Text]:
    """Rows of a set, as one text or two with the same tokens.

    Args:
        data: GLUE's folder; None makes rows up.

    Raises:
        InputError: the file is missing or has other columns.
    """
    chosen = SETS[name]
    if data is None:
        return _made_up(chosen, is_pair=is_pair)
    return [_shaped(row, chosen.first, is_pair=is_pair) for row in _glue(data / chosen.file, chosen.columns)]


def _glue(file: Path, columns: tuple[str, ...]) -> list[list[str]]:
    try:
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        places = [header.split("\t").index(column) for column in columns]
    except (OSError, ValueError) as error:
        raise InputError(
            "these are not GLUE's rows", given=f"{file}: {error}", remedy="--data names the folder that holds SST-2/"
        ) from error
    return [[line.split("\t")[place].strip() for place in places] for line in lines if line]


def made_up_row(dice: random.Random, words: int, first: float, *, is_pair: bool) -> Text:
    """A pair is cut after the share `first` of its words."""
    return _shaped([" ".join(dice.choices(_WORDS.split(), k=words))], first, is_pair=is_pair)


def _made_up(chosen: TextSet, *, is_pair: bool) -> list[Text]:
    dice, lengths = random.Random(0), chosen.lengths
    rows = []
    for _ in range(_MADE_UP):
        place, part = divmod(dice.random() * (len(lengths) - 1), 1)
        low, high = lengths[int(place)], lengths[int(place) + 1]
        rows.append(made_up_row(dice, round(low + part * (high - low)), chosen.first, is_pair=is_pair))
    return rows


def _shaped(row: list[str], first: float, *, is_pair: bool) -> Text:
    if not is_pair:
        return " ".join(row)
    if len(row) == 2:
        return row[0], row[1]
    words = row[0].split()
    cut = max(1, round(first * len(words)))
    return " ".join(words[:cut]), " ".join(words[cut:]) or words[0]
