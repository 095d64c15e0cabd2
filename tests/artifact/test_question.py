"""An artifact's question: one form for both APIs, its fingerprint, its outputs, and the file of `kdc compress`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from bag_models import PAIR, SINGLE, write_artifact
from pydantic import TypeAdapter, ValidationError

from kdc.artifact.folder import load_manifest, parse_manifest
from kdc.artifact.manifest import TaskInfo
from kdc.artifact.question import Option, Question, state_text
from kdc.artifact.question_forms import TypeSafeQuestion, read_questions
from kdc.artifact.task_kinds import KINDS
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import questions_of

CLASSES, LISTS = KINDS["classification"], KINDS["multilabel"]
MOOD = {"type": "choice", "instructions": "Which mood?", "criteria": {"good": "glad", "bad": None, "so so": None}}


def written(folder: Path, document: Any) -> Path:
    path = folder / "question.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def read(folder: Path, document: Any) -> Question:
    (question,) = read_questions(written(folder, document))
    return question


def test_both_apis_write_the_same_question(tmp_path: Path) -> None:
    """Would catch a fingerprint that depends on the API, or on the order of a choice's options."""
    choices = [{"value": "bad"}, {"value": "so so"}, {"value": "good", "description": "glad"}]
    other = {"type": "choice", "name": "mood", "instructions": "Which mood?", "choices": choices}
    canonical = '["choice","Which mood?",[["bad",null],["good","glad"],["so so",null]]]'
    expected = hashlib.sha256(canonical.encode()).hexdigest()
    assert {read(tmp_path, document).fingerprint for document in (MOOD, other)} == {expected}


def test_a_noul_is_a_predicate(tmp_path: Path) -> None:
    noul = {"type": "noul", "instructions": "Glad?", "criteria": {"true": None}}
    predicate = {"type": "predicate", "instructions": "Glad?"}
    assert read(tmp_path, noul).fingerprint == read(tmp_path, predicate).fingerprint


def test_an_empty_text_is_no_text(tmp_path: Path) -> None:
    """Some programs send "", others null or nothing, and mean the same."""
    bare = {"type": "choice", "criteria": {"a": None, "b": None}}
    empty = {"type": "choice", "instructions": "", "criteria": {"a": "", "b": None}}
    assert read(tmp_path, bare).fingerprint == read(tmp_path, empty).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"instructions": "Which temper?"},
        {"criteria": {"good": None, "bad": None, "so so": None}},
        {"criteria": {"good": "glad", "bad": None, "so so ": None}},
        {"type": "score", "criteria": ["good", "bad", "so so"]},
    ],
)
def test_another_question_has_another_fingerprint(tmp_path: Path, change: Any) -> None:
    assert read(tmp_path, MOOD).fingerprint != read(tmp_path, MOOD | change).fingerprint


def test_the_order_of_levels_counts(tmp_path: Path) -> None:
    up, down = ({"type": "score", "criteria": levels} for levels in (["low", "high"], ["high", "low"]))
    assert read(tmp_path, up).fingerprint != read(tmp_path, down).fingerprint


@pytest.mark.parametrize(
    ("state", "template", "text"),
    [
        ("a {b}", "{b}", "a {b}"),
        ({"b": 1, "a": "ü"}, None, '{"a":"ü","b":1}'),
        (["x", None], "{b}", '["x",null]'),
        ({"a": "x", "b": {"d": 1, "c": [True]}}, "{a}: {b}", 'x: {"c":[true],"d":1}'),
        ({"a": "{b}", "b": "x"}, "{a}{b}", "{b}x"),
    ],
)
def test_a_state_becomes_text(state: Any, template: str | None, text: str) -> None:
    assert state_text(state, template) == text


def test_a_state_without_the_templates_key_is_refused() -> None:
    with pytest.raises(ValueError, match="no key subject"):
        state_text({"body": "x"}, "{subject} {body}")


def test_a_deep_state_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="deeply"):
        state_text(deep, None)


def asked(kind: Any, *names: Any, label: str | None = None) -> Question:
    return Question(type=kind, options=tuple(Option(name=name) for name in names), label=label)


@pytest.mark.parametrize(
    ("question", "labels", "kind", "outputs"),
    [
        (asked("choice", "b", "c", "a"), ("a", "b", "c"), CLASSES, (1, 2, 0)),
        (asked("choice", True, "no"), ("no", "true"), CLASSES, (1, 0)),
        (asked("choice", "a", "b"), ("a", "b", "c"), CLASSES, None),
        (asked("choice", "a", "b"), ("a", "b"), LISTS, None),
        (asked("score", "low", "high"), ("high", "low"), CLASSES, (1, 0)),
        (asked("score", "low", "high"), ("1", "0"), CLASSES, (1, 0)),
        (asked("choice", "low", "high"), ("1", "0"), CLASSES, None),
        (asked("noul", "false", "true"), ("Yes", "No"), CLASSES, (0,)),
        (asked("noul", "false", "true"), ("good", "bad"), CLASSES, None),
        (asked("noul", "false", "true", label="bad"), ("good", "bad"), CLASSES, (1,)),
        (asked("noul", "false", "true", label="spam"), ("rude", "spam", "x"), LISTS, (1,)),
        (asked("noul", "false", "true"), (), KINDS["regression"], None),
    ],
)
def test_each_option_has_an_output(question: Question, labels: Any, kind: Any, outputs: Any) -> None:
    assert question.outputs(labels, kind) == outputs


def test_a_manifest_keeps_the_question(tmp_path: Path) -> None:
    question = read(tmp_path, MOOD | {"template": "{subject}"})
    manifest = load_manifest(write_artifact(tmp_path / "artifact", questions=(question,)))
    assert manifest.questions == (question,)


def test_a_manifest_of_an_older_kdc_loads(tmp_path: Path) -> None:
    document = json.loads((write_artifact(tmp_path) / "manifest.json").read_text(encoding="utf-8"))
    del document["questions"], document["sha256"]
    content = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    assert parse_manifest(json.dumps(document).encode(), "m").questions == ()


def test_nouls_by_their_labels_are_of_a_multi_label_task(tmp_path: Path) -> None:
    task = TaskInfo(name="toxic", kind="multilabel", labels=("insult", "spam"))
    nouls = {label: {"type": "noul", "instructions": f"Is it {label}?"} for label in ("spam", "insult")}
    predicates = [question | {"type": "predicate", "name": label} for label, question in nouls.items()]
    for document in (nouls, predicates):
        questions = questions_of(written(tmp_path, document), task)
        assert [question.label for question in questions] == ["spam", "insult"]


@pytest.mark.parametrize(
    ("document", "task", "message"),
    [
        (MOOD | {"criteria": {"good": None, "bad": None}}, SINGLE, "labels are"),
        ({"a": MOOD, "b": MOOD}, SINGLE, "only a multi-label task"),
        (MOOD, PAIR, "pairs"),
        (MOOD, TaskInfo(name="stars", kind="regression"), "a number"),
        (MOOD | {"critera": {}}, SINGLE, "no question"),
        (MOOD | {"type": "box"}, SINGLE, "no question"),
        (MOOD | {"instructions": 1}, SINGLE, "no question"),
        ("{", SINGLE, "no JSON"),
        ("[1]", SINGLE, "no JSON"),
        ("{}", SINGLE, "holds no question"),
        ('{"type": "noul", "instructions": [NaN]}', SINGLE, "no JSON"),
    ],
)
def test_a_wrong_file_is_refused_with_a_remedy(tmp_path: Path, document: Any, task: TaskInfo, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        questions_of(written(tmp_path, document), task)
    assert caught.value.remedy


WIRE: TypeAdapter[Any] = TypeAdapter(TypeSafeQuestion)


def asks(instructions: Any) -> Any:
    return WIRE.validate_json(json.dumps({"type": "noul", "instructions": instructions}))


def test_a_question_that_is_asked_again_is_not_read_again() -> None:
    assert asks("Glad?") is asks("Glad?")


@pytest.mark.parametrize(("one", "other"), [([1], [1.0]), ([1], [True]), (["a", "b"], ["b", "a"]), ("", None)])
def test_questions_that_differ_in_one_value_are_not_taken_for_each_other(one: Any, other: Any) -> None:
    assert (json.dumps(asks(one).instructions), json.dumps(asks(other).instructions)) == (
        json.dumps(one),
        json.dumps(other),
    )


def test_few_and_short_questions_are_kept() -> None:
    """Would catch memory that grows with what callers ask."""
    first, long = asks("first"), asks("long" * 5000)
    assert asks("long" * 5000) is not long
    for number in range(100):
        asks(f"other {number}")
    assert asks("first") is not first


def test_a_wrong_question_is_told_where_it_is() -> None:
    """Would catch an error of the copy that is kept, which has no place in the body."""
    wrong = {"type": "choice", "criteria": {"good": 1, "bad": None}}
    with pytest.raises(ValidationError) as error:
        TypeAdapter(dict[str, TypeSafeQuestion]).validate_python({"mood": wrong})
    assert error.value.errors()[0]["loc"] == ("mood", "choice", "criteria", "good")
