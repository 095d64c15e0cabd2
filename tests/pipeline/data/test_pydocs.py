"""The built-in task: balanced, split by object, no sentence on both sides, nothing given away, the same every time."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kdc.common.errors import KdcError
from kdc.pipeline.data import pydocs
from kdc.pipeline.data.pydocs import (
    Documented,
    first_sentence,
    gives_name_away,
    make_rows,
    split_by_object,
    usable_objects,
)

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def rows() -> tuple[Rows, Rows]:
    return pydocs.make_pydocs(seed=0)


def _module(row: dict[str, str]) -> str:
    """The module in a group's name: what can be imported of it, found without the code under test."""
    parts = row["group"].split(".")
    importable = [".".join(parts[:end]) for end in range(1, len(parts)) if ".".join(parts[:end]) in _MODULES]
    return importable[-1]


_MODULES = {
    *sys.stdlib_module_names,
    *(
        ".".join(path.relative_to(Path(json.__file__).parents[1]).with_suffix("").parts).removesuffix(".__init__")
        for path in Path(json.__file__).parents[1].rglob("*.py")
        if "site-packages" not in path.parts
    ),
    "os.path",
}


def test_about_5300_pairs_of_which_15_percent_are_for_evaluation(rows: tuple[Rows, Rows]) -> None:
    train, evaluation = rows
    assert 5000 < len(train) + len(evaluation) < 5500
    assert 0.14 < len(evaluation) / (len(train) + len(evaluation)) < 0.16


def test_labels_are_balanced_in_both_splits(rows: tuple[Rows, Rows]) -> None:
    for split in rows:
        assert Counter(row["label"] for row in split) == {
            "answers": len(split) // 2,
            "does_not_answer": len(split) // 2,
        }


def test_no_object_and_no_sentence_is_in_both_splits(rows: tuple[Rows, Rows]) -> None:
    train, evaluation = rows
    for key in ("group", "question", "sentence"):
        assert not {row[key] for row in train} & {row[key] for row in evaluation}


def test_a_sentence_or_a_question_alone_says_nothing(rows: tuple[Rows, Rows]) -> None:
    for split in rows:
        for key in ("sentence", "question"):
            labels: dict[str, list[str]] = {}
            for row in split:
                labels.setdefault(row[key], []).append(row["label"])
            assert all(sorted(both) == ["answers", "does_not_answer"] for both in labels.values())


def test_a_non_answer_is_the_answer_of_another_object_of_the_same_module(rows: tuple[Rows, Rows]) -> None:
    for split in rows:
        owners = {row["sentence"]: row for row in split if row["label"] == "answers"}
        for row in split:
            if row["label"] == "does_not_answer":
                owner = owners[row["sentence"]]
                assert owner["group"] != row["group"]
                assert _module(owner) == _module(row)


def test_the_answer_stands_in_the_objects_own_docstring(rows: tuple[Rows, Rows]) -> None:
    import textwrap

    everything = [*rows[0], *rows[1]]
    dedent = [row for row in everything if row["group"].startswith("textwrap.") and row["label"] == "answers"]
    assert dedent
    for row in dedent:
        value: object = textwrap
        for name in row["group"].split(".")[1:]:
            value = getattr(value, name)
        assert row["sentence"] in " ".join((value.__doc__ or "").split())


def test_the_same_seed_gives_the_same_rows_and_another_seed_does_not(
    rows: tuple[Rows, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    docstrings = pydocs.collect_docstrings()
    monkeypatch.setattr(pydocs, "collect_docstrings", lambda: docstrings)
    assert pydocs.make_pydocs(seed=0) == rows
    assert pydocs.make_pydocs(seed=1) != rows


def test_counting_shared_words_gets_well_under_what_a_model_reaches(rows: tuple[Rows, Rows]) -> None:
    # A model reaches about 80 %.
    right = 0
    everything = [*rows[0], *rows[1]]
    for row in everything:
        name = row["group"].rsplit(".", 1)[-1].lower()
        shared = any(word in name for word in row["sentence"].lower().split() if len(word) > 2)
        right += shared == (row["label"] == "answers")
    assert right / len(everything) < 0.75


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum.  Then rest, e.g. more.", ""),
        ("Return the sum of all items.\n\nMore.", "Return the sum of all items."),
        ("\n    Join the parts,\n    one after another. They stay.\n", "Join the parts, one after another."),
        ("split(text, sep=None) -> list\n\nSplit a text at its blanks.", "Split a text at its blanks."),
        ("a(x) -> int\nb(x, y) -> int\n\nCount what is there now", "Count what is there now"),
        ("Read a file, e.g. `a.txt`, to its end. Close it.", "Read a file, e.g. `a.txt`, to its end."),
        ("D.keys() -> a set-like object providing a view on D's keys", ""),
        ("word " * 41, ""),
        ("", ""),
    ],
)
def test_the_first_sentence_is_found_whatever_the_docstrings_form(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("name", "sentence", "given_away"),
    [
        ("copy", "Copy a file to another place.", False),
        ("copy", "Use copy(source, target) to do so.", True),
        ("copy_file", "The same as copy_file without checks.", True),
        ("TextWrapper", "A TextWrapper wraps text for you.", True),
        ("TextWrapper", "An object that wraps text for you.", False),
        ("Thing.get_name", "Return what get_name returned before.", True),
        ("b64encode", "Like b64encode but for files.", True),
    ],
)
def test_names_that_only_code_has_are_found_in_a_sentence(name: str, sentence: str, given_away: bool) -> None:
    assert gives_name_away(name, sentence) is given_away


def test_the_first_object_keeps_a_sentence_that_two_have() -> None:
    objects = usable_objects(
        [("os.path", "join", "Join two or more paths."), ("zipfile", "join", "join two or more paths")]
    )
    assert objects == [Documented("os.path", "join", "Join two or more paths.")]


def test_every_object_has_a_partner_in_its_split() -> None:
    sizes = [1, 2, 3, 4, 5, 7, 10, 13, 40, 2, 2, 3, 9, 100]
    objects = [Documented(f"m{m}", f"f{i}", f"sentence {m} {i}") for m, size in enumerate(sizes) for i in range(size)]
    for seed in range(50):
        train, evaluation = split_by_object(objects, random.Random(seed))
        assert len(train) + len(evaluation) == sum(sizes) - 1  # the module with one object is left out
        for split in (train, evaluation):
            assert min(Counter(each.module for each in split).values()) >= 2
            assert len(make_rows(split, random.Random(seed))) == 2 * len(split)


def test_a_python_without_docstrings_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "collect_docstrings", lambda: [("os", "getcwd", "Return the current folder.")])
    with pytest.raises(KdcError, match=r"too few docstrings(?s:.)*given: 1 usable"):
        pydocs.make_pydocs(seed=0)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise SystemExit('no such thing')", "failed\n  given: exit status 1: no such thing"),
        ("print('not json')", "failed\n  given: JSONDecodeError"),
        ("import time; time.sleep(60)", "hung\n  given: no answer after 0.2 s"),
    ],
)
def test_a_collector_that_fails_is_a_clear_error(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = tmp_path / "collector.py"
    collector.write_text(script, encoding="utf-8")
    monkeypatch.setattr(pydocs, "_COLLECTOR", collector)
    monkeypatch.setattr(pydocs, "COLLECT_TIMEOUT_S", 0.2 if "sleep" in script else 60)
    with pytest.raises(KdcError) as caught:
        pydocs.collect_docstrings()
    assert message in str(caught.value)


def test_rows_do_not_depend_on_optimisation_folder_or_environment(rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    (tmp_path / "textwrap.py").write_text("raise SystemExit('a file of the person, not the library')")
    code = "import sys, json\nfrom kdc.pipeline.data.pydocs import make_pydocs; json.dump(make_pydocs(0), sys.stdout)"
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-OO", "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == [rows[0], rows[1]]


def test_importing_the_library_prints_nothing_but_the_answer() -> None:
    command = [sys.executable, "-I", "-S", "-B", "-W", "ignore", str(pydocs._COLLECTOR)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=120)
    answer = json.loads(done.stdout)
    modules = {module for module, _, _ in answer["objects"]} | set(answer["unimportable"])
    assert not modules & {"antigravity", "this", "turtle", "tkinter", "test", "__main__"}
    assert not any(module.endswith("__main__") or module.startswith("idlelib") for module in modules)
