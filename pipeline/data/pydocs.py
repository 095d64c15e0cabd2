"""The built-in task `pydocs`: does a sentence describe a Python object?

Pairs come from the running Python's standard library:

    "What does `textwrap.dedent` do?"
    "Remove any common leading whitespace from every line in `text`."  answers
    "Collapse and truncate the given text to fit in the given width."  does_not_answer

Each sentence and question occurs once with each label, so neither alone predicts it. Negatives come from the same
module and split.
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
MAX_OBJECTS = 2680  # a run takes minutes on two cores
MIN_OBJECTS = 1000  # 300 evaluation rows
MIN_WORDS, MAX_WORDS = 4, 40
COLLECT_TIMEOUT_S = 120

_COLLECTOR = Path(__file__).with_name("_collect_docstrings.py")
# A signature gives the name away.
_SIGNATURE_LINE = re.compile(r"^[\w.]+\s*\([^\n]*$\n?", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s+[A-Z`'\"(*]|\s*$)")


class Documented(NamedTuple):
    module: str
    name: str
    sentence: str


def make_pydocs(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and evaluation rows with `question`, `sentence`, `label` (balanced) and `group` (the object).

    Raises:
        KdcError: collecting failed, or this Python lacks docstrings.
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
    """(module, name in module, docstring) of the standard library."""
    # -I -S hide environment, current folder and site-packages.
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
    """The first sentence; "" if its length is unusable."""
    text = docstring.strip()
    while signature := _SIGNATURE_LINE.match(text):
        text = text[signature.end() :].strip()
    paragraph = " ".join(re.split(r"\n\s*\n", text, maxsplit=1)[0].split())
    end = _SENTENCE_END.search(paragraph)
    sentence = paragraph[: end.end()] if end else paragraph
    return sentence if MIN_WORDS <= len(sentence.split()) <= MAX_WORDS else ""


def gives_name_away(name: str, sentence: str) -> bool:
    """Whether the sentence has the name as code, which models could match by letters."""
    own = name.rsplit(".", 1)[-1]
    if re.search(rf"(?<!\w){re.escape(own)}\s*\(", sentence):
        return True
    is_identifier = "_" in own or any(letter.isupper() or letter.isdigit() for letter in own[1:])
    return is_identifier and re.search(rf"(?<!\w){re.escape(own)}(?!\w)", sentence) is not None


def usable_objects(docstrings: list[tuple[str, str, str]]) -> list[Documented]:
    """Only the first object keeps a shared sentence, which could be a false negative or leak."""
    usable: dict[str, Documented] = {}
    for module, name, docstring in docstrings:
        sentence = first_sentence(docstring)
        if sentence and not gives_name_away(name, sentence):
            usable.setdefault(sentence.casefold().rstrip(".!? "), Documented(module, name, sentence))
    objects = list(usable.values())
    if len(objects) <= MAX_OBJECTS:
        return objects
    # All seeds share one task.
    return sorted(random.Random(0).sample(objects, MAX_OBJECTS))


def _by_module(objects: list[Documented]) -> list[list[Documented]]:
    return [list(members) for _, members in groupby(objects, key=lambda documented: documented.module)]


def split_by_object(objects: list[Documented], rng: random.Random) -> tuple[list[Documented], list[Documented]]:
    """A split has none or at least two of a module's objects, since negatives need another."""
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
    """Pair each object with its own sentence, and with one of its module."""
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
