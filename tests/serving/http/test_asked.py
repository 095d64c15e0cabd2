"""`/v1/systemone` and `/v1/decisions` by the raw wire: who answers, the numbers, and what is refused.

`make test-decisions` asks with the APIs' own clients."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import SINGLE, write_artifact
from live import running

from kdc.artifact.decision import Abstention
from kdc.artifact.manifest import TaskInfo
from kdc.artifact.question import Option, Question
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http.api.asked import confidence
from kdc.serving.http.registry import verify
from kdc.serving.http.settings import ServeSettings

WIDE = tuple(f"option {place} é 🙂" for place in range(255))
TASKS = {
    "mood": SINGLE,
    "yesno": TaskInfo(name="yesno", kind="classification", labels=("true", "false")),
    "urgency": TaskInfo(name="urgency", kind="classification", labels=("2", "0", "1")),
    "toxic": TaskInfo(name="toxic", kind="multilabel", labels=("insult", "threat", "spam")),
    "wide": TaskInfo(name="wide", kind="classification", labels=WIDE),
    "careful": SINGLE.model_copy(update={"labels": ("x", "y", "z"), "abstain": Abstention(threshold=0.6, aim="fixed")}),
}
MOOD = {"type": "choice", "instructions": "Which mood?", "criteria": {"good": "glad", "bad": None, "so so": None}}
SPAM = {"type": "noul", "instructions": "Is it spam?"}
URGENCY = {"type": "score", "instructions": "How urgent?", "criteria": ["later", {"when": "soon"}, "now"]}
YESNO = {"type": "noul", "instructions": "Anything?", "criteria": {"true": "indeed"}}
CAREFUL = {"type": "choice", "criteria": {"x": None, "y": None, "z": None}}
MOOD_OPENAI = {
    "type": "choice",
    "instructions": "Which mood?",
    "choices": [{"value": "so so"}, {"value": "good", "description": "glad"}, {"value": "bad"}],
}
SPAM_OPENAI = {"type": "predicate", "instructions": "Is it spam?", "name": "spam"}
LEVELS = [{"label": "none"}, {"label": "some"}, {"label": "much", "description": "d"}]
SCORE_OPENAI = {"type": "score", "name": "how", "instructions": "How much?", "levels": LEVELS}


def options(*names: str) -> tuple[Option, ...]:
    return tuple(Option(name=name) for name in names)


QUESTIONS = {
    "mood": Question(
        type="choice",
        instructions="Which mood?",
        options=(*options("so so", "bad"), Option(name="good", description="glad")),
        template="{subject} {body}",
    ),
    "toxic": Question(type="noul", instructions="Is it spam?", options=options("false", "true"), label="spam"),
    "urgency": Question(type="score", instructions="How urgent?", options=options("later", '{"when":"soon"}', "now")),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        name: write_artifact(
            folder / name,
            task,
            outputs=len(task.labels),
            questions=(QUESTIONS[name],) if name in QUESTIONS else (),
        )
        for name, task in TASKS.items()
    }


@pytest.fixture(scope="module")
def service(artifacts: dict[str, Path]) -> Iterator[str]:
    places = ",".join(f"{name}={path}" for name, path in artifacts.items())
    with running(places, answers="yesno,wide,careful,urgency", max_text_chars=1000) as url:
        yield url


def engines_row(artifacts: dict[str, Path], name: str, text: str) -> dict[str, float]:
    row = Engine.load(artifacts[name], device="cpu", threads=1).predict([text])[0]
    return dict(zip(TASKS[name].labels, row.tolist(), strict=True))


def post(service: str, path: str, body: Any) -> httpx2.Response:
    return httpx2.post(f"{service}/v1/{path}", content=body if isinstance(body, bytes) else json.dumps(body).encode())


def system_one(service: str, questions: dict[str, Any], state: Any = "w1 w2") -> Any:
    reply = post(service, "systemone", {"model": "jev-latest", "state": state, "questions": questions})
    assert reply.status_code == 200, reply.text
    return reply.json()


def decide(service: str, questions: list[Any], given: Any = "w1 w2") -> Any:
    reply = post(service, "decisions", {"model": "gpt-6-luna", "input": given, "questions": questions})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_info_tells_the_first_models_questions_for_people(service: str) -> None:
    assert httpx2.get(f"{service.rstrip('/')}/info").json()["questions"] == ["choice (3: so so, ...) 'Which mood?'"]


def test_a_choice_has_the_engines_probabilities_by_option(service: str, artifacts: dict[str, Path]) -> None:
    expected = engines_row(artifacts, "mood", "w1 w2")
    reply = system_one(service, {"q": MOOD})
    answer = reply["answers"]["q"]
    assert answer["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert answer["choice"] == max(expected, key=expected.__getitem__)
    assert answer["confidence"] == pytest.approx((max(expected.values()) - 1 / 3) / (2 / 3), abs=1e-5)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    assert reply["model"] == "mood"
    other = decide(service, [MOOD_OPENAI])["answers"][0]
    assert {each["value"]: each["probability"] for each in other["probabilities"]} == answer["probabilities"]
    assert [each["value"] for each in other["probabilities"]] == ["so so", "good", "bad"]
    assert (other["choice"], other["confidence"], other["name"]) == (answer["choice"], answer["confidence"], None)


def test_a_noul_has_the_probability_of_yes(service: str, artifacts: dict[str, Path]) -> None:
    """Would catch a softmax over the labels of a multi-label task, and no taken for yes."""
    answers = system_one(service, {"spam": SPAM, "any": YESNO})["answers"]
    assert answers["spam"] == {"type": "noul", "noul": pytest.approx(engines_row(artifacts, "toxic", "w1 w2")["spam"])}
    assert answers["any"]["noul"] == pytest.approx(engines_row(artifacts, "yesno", "w1 w2")["true"])
    (predicate,) = decide(service, [SPAM_OPENAI])["answers"]
    assert predicate == {"type": "predicate", "name": "spam", "probability": answers["spam"]["noul"]}


def test_a_score_is_the_expected_level(service: str, artifacts: dict[str, Path]) -> None:
    """Would catch levels in the order of the labels, and the distance from the wrong level."""
    row = engines_row(artifacts, "urgency", "w1 w2")
    levels = [row["0"], row["1"], row["2"]]
    answer = system_one(service, {"q": URGENCY})["answers"]["q"]
    assert answer["score"] == pytest.approx(levels[1] + 2 * levels[2], abs=1e-6)
    assert list(answer["probabilities"].values()) == pytest.approx(levels, abs=1e-6)
    assert answer["legend"] == {"0": "later", "1": {"when": "soon"}, "2": "now"}
    best = int(np.argmax(levels))
    spread = sum(p * abs(level - best) for level, p in enumerate(levels))
    assert answer["confidence"] == pytest.approx(max(0, 1 - spread / (2 / 3)), abs=1e-5)
    other = decide(service, [SCORE_OPENAI])["answers"][0]
    assert other["score"] == pytest.approx(answer["score"])
    assert [(each["value"], each["label"]) for each in other["probabilities"]] == [
        (0, "none"),
        (1, "some"),
        (2, "much"),
    ]


def test_255_options_come_back_byte_for_byte(service: str, artifacts: dict[str, Path]) -> None:
    question = {"type": "choice", "instructions": {"any": ["JSON"]}, "criteria": dict.fromkeys(reversed(WIDE))}
    answer = system_one(service, {"🙂 q": question})["answers"]["🙂 q"]
    assert list(answer["probabilities"]) == list(reversed(WIDE))
    assert answer["probabilities"] == pytest.approx(engines_row(artifacts, "wide", "w1 w2"), abs=1e-6)


def test_questions_of_one_artifact_share_a_row(service: str) -> None:
    """Tokens are counted once for a text: [CLS] w1 w2 [SEP]."""
    one = system_one(service, {"a": YESNO})["usage"]
    assert one == {"input_tokens": 4, "output_tokens": 0}
    assert system_one(service, {str(place): YESNO for place in range(300)})["usage"] == one
    usage = decide(service, [SPAM_OPENAI, MOOD_OPENAI])["usage"]
    assert (usage["input_tokens"], usage["total_tokens"]) == (8, 8)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"body": "w2", "subject": "w1", "more": 3}, "w1 w2"),
        ("w4", "w4"),
        (["w1", "w2"], '["w1","w2"]'),
    ],
)
def test_a_state_is_read_by_the_questions_template(
    service: str, artifacts: dict[str, Path], state: Any, text: str
) -> None:
    answer = system_one(service, {"q": MOOD}, state)["answers"]["q"]
    assert answer["probabilities"] == pytest.approx(engines_row(artifacts, "mood", text), abs=1e-6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([{"role": "user", "content": "w1 w2"}], "w1 w2"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "w1"}]}], "w1"),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"subject": "w5", "body": "w6"}}]}], "w5 w6"),
        ([{"role": "w3", "content": "w1"}, {"type": "function_call_output", "output": "w2"}], "w3: w1 ? : w2"),
    ],
)
def test_messages_become_text(service: str, artifacts: dict[str, Path], given: Any, text: str) -> None:
    (answer,) = decide(service, [MOOD_OPENAI], given)["answers"]
    got = {each["value"]: each["probability"] for each in answer["probabilities"]}
    assert got == pytest.approx(engines_row(artifacts, "mood", text), abs=1e-6)


def test_an_abstention_is_marked_and_keeps_its_probabilities(service: str, artifacts: dict[str, Path]) -> None:
    marked = set()
    for number in range(12):
        best = max(engines_row(artifacts, "careful", f"w{number}").values())
        answer = system_one(service, {"q": CAREFUL}, f"w{number}")["answers"]["q"]
        assert answer.get("x_abstained", False) == (best < 0.6)
        assert max(answer["probabilities"].values()) == pytest.approx(best, abs=1e-6)
        marked.add(best < 0.6)
    assert marked == {True, False}


def test_a_question_with_other_words_is_not_answered_by_its_options_alone(service: str) -> None:
    """`mood` is not in --answers. Both errors list what is known."""
    strange = MOOD | {"instructions": "Which weather?"}
    reply = post(service, "systemone", {"state": "w1", "questions": {"ok": YESNO, "strange" * 1000: strange}})
    assert reply.status_code == 422
    (wrong,) = reply.json()["detail"]
    assert wrong["loc"][:2] == ["body", "questions"]
    assert wrong["loc"][2].startswith("strange")
    assert len(reply.content) < 1000
    openais = post(service, "decisions", {"input": "w1", "questions": [MOOD_OPENAI | {"instructions": "?"}]})
    assert openais.status_code == 400
    error = openais.json()["error"]
    assert error["param"] == "questions.0"
    for message in (wrong["msg"], error["message"]):
        assert "'Which mood?'" in message
        assert "'Is it spam?'" in message


def test_a_served_name_narrows_who_answers(service: str) -> None:
    body = {"model": "toxic", "state": "w1", "questions": {"q": MOOD}}
    assert post(service, "systemone", body).status_code == 422
    assert post(service, "systemone", body | {"model": "mood"}).status_code == 200


def test_models_are_listed_for_both_apis(service: str) -> None:
    reply = httpx2.get(f"{service}/v1/models").json()
    assert [each["id"] for each in reply["data"]] == [each["name"] for each in reply["models"]] == list(TASKS)
    assert "Which mood?" in reply["models"][0]["description"]


DEEP = b"[" * 102 + b"1" + b"]" * 102
WRONG: list[tuple[str, Any]] = [
    ("systemone", b"{"),
    ("systemone", b""),
    ("systemone", []),
    ("systemone", {"questions": {"q": YESNO}}),
    ("systemone", {"state": None, "questions": {"q": YESNO}}),
    ("systemone", {"state": " ", "questions": {"q": YESNO}}),
    ("systemone", {"state": "w" * 1001, "questions": {"q": YESNO}}),
    ("systemone", {"state": {"subject": "w1"}, "questions": {"q": MOOD}}),
    ("systemone", b'{"state": ' + DEEP + b', "questions": {"q": ' + json.dumps(YESNO).encode() + b"}}"),
    ("systemone", b'{"state": "w1", "questions": {"q": {"type": "noul", "instructions": ' + DEEP + b"}}}"),
    ("systemone", {"state": "w1", "questions": {}}),
    ("systemone", {"state": "w1", "questions": {str(place): YESNO for place in range(401)}}),
    ("systemone", {"state": "w1", "questions": {"q": "noul"}}),
    ("systemone", {"state": "w1", "questions": {"q": {"type": "predicate", "instructions": "?"}}}),
    ("systemone", {"state": "w1", "questions": {"q": CAREFUL | {"criteria": {"x": 1}}}}),
    ("systemone", {"state": "w1", "questions": {"q": CAREFUL | {"criteria": {"x": None, "y": None, "z": 1}}}}),
    ("systemone", {"state": "w1", "questions": {"q": CAREFUL | {"criteria": dict.fromkeys(map(str, range(256)))}}}),
    ("systemone", {"state": "w1", "questions": {"q": URGENCY | {"criteria": {"0": "a", "1": "b"}}}}),
    ("systemone", {"state": "w1", "questions": {"q": YESNO}, "assets": {"a": {"type": "image"}}}),
    ("systemone", {"state": "w1", "questions": {"q": {"type": "box"}}}),
    ("systemone", b'{"state": "w1", "questions": {"' + b"k" * 100_000 + b'": 1}}'),
    ("decisions", b"{"),
    ("decisions", {"input": "w1", "questions": []}),
    ("decisions", {"input": [], "questions": [SPAM_OPENAI]}),
    ("decisions", {"input": "", "questions": [SPAM_OPENAI]}),
    ("decisions", {"input": [{"role": "user"}], "questions": [SPAM_OPENAI]}),
    ("decisions", {"input": [{"role": "user", "content": []}], "questions": [SPAM_OPENAI]}),
    ("decisions", {"input": [{"role": "user", "content": [{"image_url": "x"}]}], "questions": [SPAM_OPENAI]}),
    ("decisions", {"input": [{"role": 1, "content": "w1"}] * 2, "questions": [SPAM_OPENAI]}),
    ("decisions", {"input": "w1", "questions": [SPAM]}),
    ("decisions", {"input": "w1", "questions": [MOOD_OPENAI | {"choices": [{"value": 1}, {"value": 2}]}]}),
    ("decisions", {"input": "w1", "questions": [MOOD_OPENAI | {"choices": [{"value": "x"}] * 3}]}),
    ("decisions", {"input": "w1", "questions": [SPAM_OPENAI] * 401}),
]


@pytest.mark.parametrize(("path", "body"), WRONG, ids=lambda value: str(value)[:50])
def test_a_bad_request_is_refused_in_the_apis_form(service: str, path: str, body: Any) -> None:
    reply = post(service, path, body)
    assert reply.status_code == (422 if path == "systemone" else 400), reply.text
    assert len(reply.content) < 2000
    if path == "systemone":
        (wrong,) = reply.json()["detail"]
        assert wrong["loc"][0] == "body"
        assert wrong["msg"]
        assert wrong["type"]
    else:
        assert reply.json()["error"]["message"]


def test_a_wrong_token_is_told_in_the_apis_form(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_KEY", "secret")
    with running(artifacts["mood"], api_key_env="DECISION_KEY") as url:
        reply = post(url, "systemone", {"state": "w1", "questions": {"q": MOOD}})
        assert reply.status_code == 401
        assert reply.json()["detail"]["error_type"] == "authentication_error"
        assert post(url, "decisions", {}).json()["error"]["message"]


def test_answers_names_artifacts_that_are_served(artifacts: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="--answers"):
        verify(ServeSettings(artifact=f"mood={artifacts['mood']}", answers="mood, other"), hashes=False)


@pytest.mark.parametrize(
    ("kind", "probabilities", "expected"),
    [
        ("score", [0.1, 0.2, 0.7], 0.4),  # 1 - (0.2 + 2 * 0.1) / (2 / 3)
        ("score", [0.5, 0.0, 0.5], 0.0),
        ("choice", [0.1, 0.2, 0.7], 0.55),  # (0.7 - 1 / 3) / (2 / 3)
        ("choice", [0.25] * 4, 0.0),
    ],
)
def test_confidence_is_typesafes(kind: str, probabilities: list[float], expected: float) -> None:
    """Would catch distances from the lowest level, and the highest probability alone."""
    assert confidence(kind, np.array(probabilities)) == pytest.approx(expected)
