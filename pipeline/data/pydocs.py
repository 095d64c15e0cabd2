"""The built-in task `pydocs`: does a sentence say what a Python object does? It needs no hub and no download.

Its pairs are made at run time from the docstrings of the Python that runs kdc, for example

    "What does `textwrap.dedent` do?"
    "Remove any common leading whitespace from every line in `text`."  answers
    "Collapse and truncate the given text to fit in the given width."  does_not_answer

Every sentence and every question is used exactly twice, once with an answer and once with a non-answer: neither says
anything alone. A non-answer comes from another object of the same module and the same split. The split is by documented
object. The same Python and the same seed give the same rows.

Reads: the standard library, imported in a subprocess (`_collect_docstrings.py`).
"""

import json
import random
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from kdc.common.errors import KdcError

ANSWERS, DOES_NOT_ANSWER = "answers", "does_not_answer"
EVAL_SHARE = 0.15
MAX_OBJECTS = 2680  # enough for a student to find its way, few enough for minutes on two cores
MIN_OBJECTS = 1000  # with fewer, the numbers of a run mean little: 15 % of it are 150 objects, 300 evaluation rows
MIN_WORDS, MAX_WORDS = 4, 40
COLLECT_TIMEOUT_S = 120

_COLLECTOR = Path(__file__).with_name("_collect_docstrings.py")
# A call that is written out ("dedent(text) -> str", "D.values() -> a set-like object ...") gives the name away.
_SIGNATURE_LINE = re.compile(r"^[\w.]+\s*\([^\n]*$\n?", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s+[A-Z`'\"(*]|\s*$)")


class Documented(NamedTuple):
    """One object of the standard library and the sentence that says what it does."""

    module: str
    name: str
    sentence: str


def make_pydocs(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Make the task's rows.

    Args:
        seed: decides the split, the negatives and the order.

    Returns:
        Training rows and evaluation rows (about 15 % of the objects). A row has the keys `question`, `sentence`,
        `label` (half "answers", half "does_not_answer") and `group`, the documented object.

    Raises:
        KdcError: the docstrings could not be collected, or this Python has too few of them.
    """
    objects = usable_objects(collect_docstrings())
    if len(objects) < MIN_OBJECTS:
        raise KdcError(
            "this Python's standard library has too few docstrings to make the pydocs task",
            given=f"{len(objects)} usable, {MIN_OBJECTS} needed, in {sys.executable}",
            remedy="use a Python built with docstrings (python.org, a Linux distribution's, pyenv), "
            "or another task: `kdc tasks`",
        )
    rng = random.Random(seed)
    train, evaluation = split_by_object(objects, rng)
    return make_rows(train, rng), make_rows(evaluation, rng)


def collect_docstrings() -> list[tuple[str, str, str]]:
    """Import the standard library in a subprocess.

    Returns:
        (module, name within the module, docstring), in a fixed order.

    Raises:
        KdcError: the subprocess did not start, failed, hung, or answered something else.
    """
    # -I -S: no environment variables, no current folder, no site-packages. No -O: that is not inherited, so a
    # `python -OO` that starts kdc does not strip these docstrings.
    command = [sys.executable, "-I", "-S", "-B", "-W", "ignore", str(_COLLECTOR)]
    remedy = f"run `{' '.join(command)}` to see why, or use another task: `kdc tasks`"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COLLECT_TIMEOUT_S, check=True
        )
        return [(module, name, text) for module, name, text in json.loads(done.stdout)["objects"]]
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        outcome, given = "failed", repr(error)
        if isinstance(error, subprocess.TimeoutExpired):
            outcome, given = "hung", f"no answer after {COLLECT_TIMEOUT_S} s"
        elif isinstance(error, subprocess.CalledProcessError):
            last_words = error.stderr.decode("utf-8", "replace").strip()[-500:]
            given = f"exit status {error.returncode}: {last_words}"
        what = f"collecting the standard library's docstrings {outcome}"
        raise KdcError(what, given=given, remedy=remedy) from error


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring as one line; "" if there is none of a usable length."""
    text = docstring.strip()
    while signature := _SIGNATURE_LINE.match(text):
        text = text[signature.end() :].strip()
    paragraph = " ".join(re.split(r"\n\s*\n", text, maxsplit=1)[0].split())
    end = _SENTENCE_END.search(paragraph)
    sentence = paragraph[: end.end()] if end else paragraph
    return sentence if MIN_WORDS <= len(sentence.split()) <= MAX_WORDS else ""


def gives_name_away(name: str, sentence: str) -> bool:
    """Whether the sentence holds the object's own name in a form that no English sentence has.

    A plain word is what the task is about ("copy": "Copy a file."): the sentence has to fit the meaning of the name. A
    name that only code has ("copy_file", "TextWrapper", "namelist()") could be matched letter by letter.
    """
    own = name.rsplit(".", 1)[-1]
    if re.search(rf"(?<!\w){re.escape(own)}\s*\(", sentence):
        return True
    is_identifier = "_" in own or any(letter.isupper() or letter.isdigit() for letter in own[1:])
    return is_identifier and re.search(rf"(?<!\w){re.escape(own)}(?!\w)", sentence) is not None


def usable_objects(docstrings: list[tuple[str, str, str]]) -> list[Documented]:
    """Choose of (module, name, docstring) the objects whose first sentence can be asked about, at most `MAX_OBJECTS`.

    Only the first object keeps a sentence that several have. The same words could otherwise be a false non-answer, and
    carry an evaluation sentence into training.
    """
    usable: dict[str, Documented] = {}
    for module, name, docstring in docstrings:
        sentence = first_sentence(docstring)
        if sentence and not gives_name_away(name, sentence):
            usable.setdefault(sentence.casefold().rstrip(".!? "), Documented(module, name, sentence))
    objects = list(usable.values())
    if len(objects) <= MAX_OBJECTS:
        return objects
    # Not by the run's seed: runs with different seeds have the same task.
    return sorted(random.Random(0).sample(objects, MAX_OBJECTS))


def _by_module(objects: list[Documented]) -> list[list[Documented]]:
    """The objects module by module; the objects of one module are neighbours."""
    return [list(members) for _, members in groupby(objects, key=lambda documented: documented.module)]


def split_by_object(objects: list[Documented], rng: random.Random) -> tuple[list[Documented], list[Documented]]:
    """Split into training and evaluation objects, module by module.

    A module gives each side no object or at least two: an object needs another one to take a non-answer from. The
    remainder of rounding is carried to the next module, which keeps the share. Modules with one object are left out.
    """
    modules = [members for members in _by_module(objects) if len(members) > 1]
    rng.shuffle(modules)
    train: list[Documented] = []
    evaluation: list[Documented] = []
    owed = 0.0
    for members in modules:
        rng.shuffle(members)
        owed += EVAL_SHARE * len(members)
        taken = min(round(owed), len(members))
        if taken < 2:
            taken = 0
        elif len(members) - taken == 1:
            taken -= 1 if taken > 2 else taken
        owed -= taken
        evaluation += members[:taken]
        train += members[taken:]
    return train, evaluation


def make_rows(objects: list[Documented], rng: random.Random) -> list[dict[str, str]]:
    """Make two rows of each object: with its own sentence, and with that of another object of its module."""
    rows: list[dict[str, str]] = []
    for members in _by_module(objects):
        rng.shuffle(members)
        for own, neighbour in zip(members, [*members[1:], members[0]], strict=True):
            group = f"{own.module}.{own.name}"
            for sentence, label in ((own.sentence, ANSWERS), (neighbour.sentence, DOES_NOT_ANSWER)):
                question = f"What does `{group}` do?"
                rows.append({"question": question, "sentence": sentence, "label": label, "group": group})
    rng.shuffle(rows)
    return rows
