"""Requests of both decision APIs to a service in front of a stub, and the right answers: the local ones by numpy, the
upstream's by the stub's own hash."""

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from bag_models import expected_logits, write_artifact
from live import ROOT, Process, served

from kdc.artifact.decision import Abstention
from kdc.artifact.manifest import TaskInfo
from kdc.artifact.question import Option, Question

sys.path.insert(0, str(ROOT))

from benchmarks.serving.stub_answers import DECISIONS, SYSTEM_ONE, answer
from benchmarks.serving.stub_connection import Stub

PATHS = (SYSTEM_ONE, DECISIONS)
THRESHOLD, SCALE, TEMPERATURE, BUDGET = 0.7, 2.0, 2.0, 0.05
INT8 = 1.01  # what `write_artifact` multiplies the int8 weights with
ABSTAIN = Abstention(threshold=THRESHOLD, aim=f"disagreement<={BUDGET}")
TASKS = {
    "mood": TaskInfo(name="mood", kind="classification", labels=("bad", "so so", "good"), abstain=ABSTAIN),
    "urgent": TaskInfo(name="urgent", kind="classification", labels=("no", "yes"), abstain=ABSTAIN),
}
KNOWN = tuple(TASKS)  # questions by the names of the artifacts that answer them
QUESTIONS = {
    "mood": Question(
        type="choice",
        instructions="Which mood?",
        options=tuple(Option(name=label) for label in TASKS["mood"].labels),
        template="{text}",
    ),
    "urgent": Question(
        type="noul",
        instructions="Is it urgent?",
        options=(Option(name="false"), Option(name="true")),
        template="{text}",
        label="yes",
    ),
}
CHOICES = {"mood": ("Which mood?", ("good", "bad", "so so")), "topic": ("Which topic?", ("cards", "loans"))}
NOULS = {"urgent": "Is it urgent?", "late": "Is it late?"}
LEVELS = ("low", "middle", "high")
NAMES = (*CHOICES, *NOULS, "loud")
# A new one for each request would read the certificates of all authorities; connections are not kept.
_CLIENT = httpx2.Client(timeout=30, limits=httpx2.Limits(max_keepalive_connections=0))


def write_artifacts(folder: Path) -> str:
    """Artifacts as `kdc serve` takes them. Each knows one question, and is unsure of some texts."""
    made = {
        name: write_artifact(
            folder / name,
            task,
            scale=SCALE,
            temperature=TEMPERATURE,
            outputs=len(task.labels),
            questions=(QUESTIONS[name],),
        )
        for name, task in TASKS.items()
    }
    return ",".join(f"{name}={path}" for name, path in made.items())


def question(path: str, name: str) -> dict[str, Any]:
    """A question on the wire: two that artifacts know, and three others."""
    if path == SYSTEM_ONE:
        if name in NOULS:
            return {"type": "noul", "instructions": NOULS[name]}
        if name in CHOICES:
            return {"type": "choice", "instructions": CHOICES[name][0], "criteria": dict.fromkeys(CHOICES[name][1])}
        return {"type": "score", "instructions": "How loud?", "criteria": list(LEVELS)}
    if name in NOULS:
        return {"type": "predicate", "name": name, "instructions": NOULS[name]}
    if name in CHOICES:
        choices = [{"value": value} for value in CHOICES[name][1]]
        return {"type": "choice", "name": name, "instructions": CHOICES[name][0], "choices": choices}
    levels = [{"label": level} for level in LEVELS]
    return {"type": "score", "name": name, "instructions": "How loud?", "levels": levels}


def asked(path: str, text: str, names: tuple[str, ...], identity: str = "1", **more: Any) -> dict[str, Any]:
    """A body with questions about a text, in this order."""
    state = {"id": identity, "text": text}
    if path == SYSTEM_ONE:
        return {"model": "m", "state": state, "questions": {name: question(path, name) for name in names}} | more
    content = [{"type": "input_json", "data": state}]
    messages = [{"role": "user", "content": content}]
    return {"model": "m", "input": messages, "questions": [question(path, name) for name in names]} | more


def answers(path: str, reply: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Answers by name, in order."""
    given = reply["answers"]
    return given if path == SYSTEM_ONE else {each["name"]: each for each in given}


@functools.cache
def local_row(name: str, text: str) -> tuple[float, ...]:
    """The artifact's probabilities in the order of its labels."""
    logits = expected_logits(text, scale=SCALE * INT8)[: len(TASKS[name].labels)] / TEMPERATURE
    weights = np.exp(logits - logits.max())
    return tuple((weights / weights.sum()).tolist())


def is_sure(name: str, text: str) -> bool:
    return name in KNOWN and max(local_row(name, text)) >= THRESHOLD


@functools.cache
def texts() -> dict[tuple[bool, ...], list[str]]:
    """Texts by which artifacts of `KNOWN` are sure of them. None is near the threshold."""
    every = [f"w{one}" for one in range(20)] + [f"w{one} w{other}" for one in range(20) for other in range(20)]
    by_sure: dict[tuple[bool, ...], list[str]] = {}
    for text in every:
        if all(abs(max(local_row(name, text)) - THRESHOLD) > 1e-3 for name in KNOWN):
            by_sure.setdefault(tuple(is_sure(name, text) for name in KNOWN), []).append(text)
    return by_sure


SURE, UNSURE, HALF = (texts()[key] for key in ((True, True), (False, False), (True, False)))


def local_label(name: str, text: str) -> str:
    row = local_row(name, text)
    return TASKS[name].labels[row.index(max(row))]


def upstreams_answer(path: str, name: str, text: str) -> dict[str, Any]:
    return answer(path, text, question(path, name), {}) | {"x_source": "upstream"}


def wrong(path: str, name: str, text: str, given: dict[str, Any]) -> str:
    """What is wrong with an answer: it must be its source's to this very question and text. "" if nothing is."""
    source = given.get("x_source")
    if source == "upstream":
        expected = upstreams_answer(path, name, text)
        return "" if given == expected else f"the upstream says {expected}"
    if source != "local" or name not in KNOWN:
        return f"the source is {source}"
    row = local_row(name, text)
    found = _numbers(path, name, given)
    if max(abs(one - other) for one, other in zip(found, row, strict=True)) > 1e-4:
        return f"the artifact says {row}"
    if name == "mood" and given["choice"] != local_label(name, text):
        return f"{given['choice']} is not the most probable option"
    is_marked = given.get("x_below_threshold", False)
    return "" if is_sure(name, text) is not is_marked else "unsure, and answered as if it were sure, or the reverse"


def _numbers(path: str, name: str, given: dict[str, Any]) -> list[float]:
    """The probabilities of a local answer, in the order of the artifact's labels."""
    if name == "urgent":
        yes = given["noul" if path == SYSTEM_ONE else "probability"]
        return [1 - yes, yes]
    by_option = given["probabilities"]
    if path == DECISIONS:
        by_option = {each["value"]: each["probability"] for each in by_option}
    return [by_option[label] for label in TASKS[name].labels]


def is_error_of(path: str, body: bytes) -> bool:
    """Whether an error has the API's form."""
    document = json.loads(body)
    if path == SYSTEM_ONE:
        detail = document.get("detail", {})
        return isinstance(detail, list) or {"error_type", "message"} <= detail.keys()
    return {"message", "type", "param", "code"} <= document.get("error", {}).keys()


@contextlib.contextmanager
def fronted(folder: Path, stub: Stub, *arguments: str, **environment: str) -> Iterator[Process]:
    """A process of `kdc serve` in front of a stub. Nothing is audited unless the environment says so."""
    variables = {"KDC_AUDIT": "0", "KDC_STATE_DIR": str(folder / "state")} | environment
    artifacts = write_artifacts(folder).split(",")
    options = ("--drain-delay", "0", "--upstream", f"{stub.url}/v1", *arguments)
    with served(folder, *artifacts, *options, **variables) as process:
        yield process


def post(url: str, path: str, body: Any, **headers: str) -> httpx2.Response:
    """Send a body, as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _CLIENT.post(url + path, content=content, headers={"content-type": "application/json"} | headers)
