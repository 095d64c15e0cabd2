"""Tables of text."""

from kdc.common.tables import aligned, markdown

ROWS = [["model", "score"], ["teacher", "90.1"], ["int8", "8.25"]]


def test_numbers_are_aligned_to_the_right_and_names_to_the_left() -> None:
    assert aligned(ROWS) == "model    score\nteacher   90.1\nint8      8.25"


def test_columns_to_the_left_have_no_trailing_blanks() -> None:
    assert aligned([["a", "b"], ["long", "x"]], left=range(2)) == "a     b\nlong  x"


def test_markdown_marks_columns_of_numbers() -> None:
    assert markdown(ROWS) == "| model | score |\n| --- | ---: |\n| teacher | 90.1 |\n| int8 | 8.25 |"


def test_one_long_cell_makes_only_its_own_line_long() -> None:
    """Would catch a name of 100,000 characters in a table of 10,000 lines, which takes gigabytes."""
    lines = aligned([["name", "x"], ["a" * 10_000, "1"], *[["b", "2"]] * 100]).splitlines()
    assert lines[1] == "a" * 10_000 + "  1"
    assert max(map(len, [lines[0], *lines[2:]])) < 300


def test_a_cell_with_a_line_break_makes_no_line() -> None:
    assert aligned([["name", "x"], ["a\nsha256", "1"]]) == "name      x\na sha256  1"
