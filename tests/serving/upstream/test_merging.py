"""Local and upstream answers are merged by question and request, whatever overlaps and fails."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.serving.merging import Simulation, WrongMerge
from kdc.serving.http.api import decided, forwarding
from kdc.serving.http.api.decided import DecisionBody


@pytest.mark.parametrize("answers_alone", [False, True])
def test_each_question_gets_its_own_answer(answers_alone: bool) -> None:
    """The short form of `benchmarks/upstream.py --merge`."""
    simulation = Simulation(answers_alone=answers_alone, shapes=200)
    asyncio.run(simulation.run(2000))
    wanted = {"200 local", "200 mixed", "200 upstream", "422", "429", "502"}
    assert set(simulation.outcomes) == wanted | ({"200 local below"} if answers_alone else set())
    assert sum(simulation.outcomes.values()) == 2000
    assert simulation.audits > 50


def reversed_answers(body: DecisionBody, reply: Any, keys: Sequence[Any]) -> list[Any]:
    return ANSWERS_IN(body, reply, keys)[::-1]


def all_questions(document: dict[str, Any], keys: object) -> dict[str, Any]:
    return document


ANSWERS_IN = DecisionBody.answers_in


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (DecisionBody, "answers_in", reversed_answers),
        (decided, "_answers", lambda *_: True),
        (forwarding, "without", all_questions),
    ],
)
def test_the_simulation_sees_a_wrong_merge(
    where: Any, name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(Exception) as seen:  # noqa: PT011 - a wrong merge may also fail by itself
        asyncio.run(Simulation(answers_alone=False, shapes=200).run(2000))
    assert isinstance(seen.value, WrongMerge | KeyError | AttributeError)
