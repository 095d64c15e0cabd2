"""Tables of text."""

from kdc.common.tables import aligned, markdown

ROWS = [["model", "score"], ["teacher", "90.1"], ["int8", "8.25"]]


def test_numbers_are_aligned_to_the_right_and_names_to_the_left() -> None:
    assert aligned(ROWS) == "model    score\nteacher   90.1\nint8      8.25"


def test_columns_to_the_left_have_no_trailing_blanks() -> None:
    assert aligned([["a", "b"], ["long", "x"]], left=range(2)) == "a     b\nlong  x"


def test_markdown_marks_columns_of_numbers() -> None:
    assert markdown(ROWS) == "| model | score |\n| --- | ---: |\n| teacher | 90.1 |\n| int8 | 8.25 |"
