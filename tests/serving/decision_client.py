"""What real clients of decision APIs get from a service: run by the Python that has them, prints one JSON object.

`python decision_client.py CLIENT URL [KEY]` with typesafe, openai, langchain or jevcompat; with systemone or decisions
the official client of that API asks the stub of a hosted model one question of each type that labels. `faults URL PORT`
serves jevcompat's reference server at PORT with each of its faults in turn, and tests it and what stands before it at
URL.
"""

import json
import sys
import threading
from typing import Any

WHICH, GOOD = "Which mood?", {"bad": None, "so so": None, "good": "glad"}
LEVELS = ["later", "soon", "now"]


def typesafe(url: str, key: str) -> dict[str, Any]:
    from typesafe_sdk import Choice, Noul, Score, TypeSafeClient, TypeSafeUnprocessableEntityError

    with TypeSafeClient(api_key=key, base_url=url) as client:
        reply = client.system_one(
            state={"body": "w2", "subject": "w1"},
            questions={
                "mood": Choice(instructions=WHICH, criteria=GOOD),
                "spam": Noul(instructions="Is it spam?"),
                "urgency": Score(instructions="How urgent?", criteria=LEVELS),
            },
        )
        try:
            client.system_one(state="w1", questions={"q": Noul(instructions="Is it late?")})
            refused = ""
        except TypeSafeUnprocessableEntityError as error:
            refused = str(error)
        return {
            "choice": reply.choices["mood"].probabilities,
            "noul": reply.nouls["spam"].noul,
            "score": reply.scores["urgency"].score,
            "legend": reply.scores["urgency"].legend,
            "tokens": reply.usage.input_tokens,
            "models": [model.name for model in client.models.list().models],
            "refused": refused,
        }


def openai(url: str, key: str) -> dict[str, Any]:
    import openai

    choices = [{"value": name} | ({"description": text} if text else {}) for name, text in GOOD.items()]
    questions: list[Any] = [
        {"type": "choice", "name": "mood", "instructions": WHICH, "choices": choices},
        {"type": "predicate", "instructions": "Is it spam?"},
        {"type": "score", "instructions": "How urgent?", "levels": [{"label": level} for level in LEVELS]},
    ]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        reply = client.decisions.create(model="gpt-6-luna", input="w1 w2", questions=questions)
        mood, spam, urgency = reply.answers
        assert mood.type == "choice"
        assert spam.type == "predicate"
        assert urgency.type == "score"
        late: Any = [{"type": "predicate", "instructions": "Is it late?"}]
        try:
            client.decisions.create(model="gpt-6-luna", input="w1", questions=late)
            refused = ""
        except openai.BadRequestError as error:
            refused = str(error)
        return {
            "choice": {str(each.value): each.probability for each in mood.probabilities},
            "noul": spam.probability,
            "score": urgency.score,
            "legend": {each.value: each.label for each in urgency.probabilities},
            "tokens": reply.usage.input_tokens,
            "models": [model.id for model in client.models.list()],
            "refused": refused,
        }


def langchain(url: str, key: str) -> dict[str, Any]:
    from langchain_core.messages import HumanMessage
    from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score

    decisions = OpenAIDecisions(model="gpt-6-luna", base_url=f"{url}/v1", api_key=key, max_retries=0)
    questions = {
        "mood": Choice(instructions=WHICH, choices=GOOD),
        "spam": Predicate(instructions="Is it spam?"),
        "urgency": Score(instructions="How urgent?", levels=LEVELS),
    }
    reply = decisions.invoke({"input": HumanMessage("w1 w2"), "questions": questions})
    try:
        decisions.invoke({"input": "w1", "questions": {"late": Predicate(instructions="Is it late?")}})
        refused = ""
    except Exception as error:  # noqa: BLE001 - of its own kind
        refused = str(error)
    return {
        "choice": reply.choices["mood"].probabilities,
        "noul": reply.predicates["spam"].probability,
        "score": reply.scores["urgency"].score,
        "legend": reply.scores["urgency"].legend,
        "tokens": reply.usage.input_tokens,
        "models": None,
        "refused": refused,
    }


def systemone(url: str, key: str) -> dict[str, Any]:
    from typesafe_sdk import Choice, Noul, TypeSafeClient

    with TypeSafeClient(api_key=key, base_url=url) as client:
        mood = client.system_one(state="w1", questions={"label": Choice(instructions=WHICH, criteria=GOOD)})
        spam = client.system_one(state="w1", questions={"label": Noul(instructions="Is it spam?")})
    return {
        "choice": mood.choices["label"].choice,
        "probabilities": mood.choices["label"].probabilities,
        "noul": spam.nouls["label"].noul,
        "tokens": mood.usage.input_tokens + mood.usage.output_tokens,
        "model": mood.model,
    }


def decisions(url: str, key: str) -> dict[str, Any]:
    import openai
    from openai.types import Decision

    choices = [{"value": name} | ({"description": text} if text else {}) for name, text in GOOD.items()]
    questions: list[Any] = [
        {"type": "choice", "name": "label", "instructions": WHICH, "choices": choices},
        {"type": "predicate", "name": "label", "instructions": "Is it spam?"},
    ]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        raw = [
            client.decisions.with_raw_response.create(model="gpt-6-luna", input="w1", questions=[question]).content
            for question in questions
        ]
    # The client builds objects without a check; this checks every field.
    mood, spam = map(Decision.model_validate_json, raw)
    (of_mood,), (of_spam,) = mood.answers, spam.answers
    assert of_mood.type == "choice"
    assert of_spam.type == "predicate"
    return {
        "choice": of_mood.choice,
        "probabilities": {str(each.value): each.probability for each in of_mood.probabilities},
        "noul": of_spam.probability,
        "tokens": mood.usage.total_tokens,
        "model": mood.model,
    }


def jevcompat(url: str, key: str) -> dict[str, Any]:
    from jevcompat.runner import run

    report = run(url, key=key or None, timeout=30)
    found = [f"{finding.req}: {finding.message}" for result in report.results for finding in result.findings]
    by_status: dict[str, list[str]] = {}
    for result in report.results:
        by_status.setdefault(result.status, []).append(result.id)
    return {"verdict": report.verdict, "found": found, **by_status}


def faults(url: str, port: str) -> dict[str, Any]:
    from jevcompat.mock import FAULTS, MockConfig, make_server

    reports = {}
    for fault in ("", *FAULTS):
        server = make_server(MockConfig(faults=frozenset({fault} - {""})), port=int(port))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reports[fault] = {name: jevcompat(each, "") for name, each in (("it", f"http://127.0.0.1:{port}"), ("us", url))}
        server.shutdown()
        server.server_close()
    return reports


if __name__ == "__main__":
    client, url, *key = sys.argv[1:]
    clients = {"typesafe": typesafe, "openai": openai, "langchain": langchain, "jevcompat": jevcompat}
    ask = (clients | {"faults": faults, "systemone": systemone, "decisions": decisions})[client]
    print(json.dumps(ask(url, key[0] if key else "")))
