"""Atomic writing: a file has its old content or its new one, whatever happens."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdc.common.files import whole_file, write_whole


def test_a_file_has_the_new_content_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    write_whole(tmp_path / "file", "größer")
    assert (tmp_path / "file").read_bytes() == "größer".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("shared", [False, True])
def test_after_an_error_the_old_content_is_there(tmp_path: Path, shared: bool) -> None:
    (tmp_path / "file").write_text("old")

    def write_half() -> None:
        with whole_file(tmp_path / "file", shared=shared) as stream:
            stream.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as stream:
        temporary = Path(stream.name)
    temporary.write_text("half")
    write_whole(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as stream:
        temporary = Path(stream.name)
    (tmp_path / "precious").write_text("precious")
    temporary.symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


def test_two_writers_of_a_shared_file_do_not_mix(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file", shared=True) as first:
        first.write(b"first")
        with whole_file(tmp_path / "file", shared=True) as second:
            second.write(b"second")
        assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").read_bytes() == b"first"


def test_several_writers_of_one_file_leave_one_whole_content(tmp_path: Path) -> None:
    """Would catch one temporary file for all: they would remove and rename each other's."""
    contents = {str(number) * 100_000 for number in range(8)}
    for _ in range(5):
        with ThreadPoolExecutor(len(contents)) as pool:
            list(pool.map(lambda content: write_whole(tmp_path / "file", content, shared=True), contents))
        assert (tmp_path / "file").read_text(encoding="utf-8") in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
