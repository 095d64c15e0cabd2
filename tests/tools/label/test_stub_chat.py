"""The stub's chat completions by OpenAI's own client. The stub is the oracle of `kdc label`, so it is tested alone."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from live import ROOT
from openai.types.chat import ChatCompletion

sys.path.insert(0, str(ROOT))

from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import DECISIONS, INPUT_TOKENS, OUTPUT_TOKENS, OUTSIDE, SYSTEM_ONE
from benchmarks.serving.stub_chat import CHAT, RESOLVED, ChatBehaviour, chat_behaviour
from benchmarks.serving.stub_connection import Behaviour, Stub

LABELS = {"refund": "money back", "so - so": "neither: or both", "other": ""}
ROW = {"refund": 0.625, "so - so": 0.25, "other": 0.125}
CODES = dict(zip("ABC", ROW, strict=True))
TEXT, LONGER = "Where is it?", "Hello. Where is it?"
TABLE = {TEXT: ROW, LONGER: {"refund": 0.1, "so - so": 0.2, "other": 0.7}, "Good?": {"true": 0.75}}
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with in_a_thread(Stub(Behaviour(), TABLE)) as stub:
        yield stub


@pytest.fixture
def client(stub: Stub) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="k", base_url=f"{stub.url}/v1", max_retries=0, timeout=5) as client:
        yield client


def listed(labels: dict[str, str]) -> str:
    named = [name + (f" - {text}" if text else "") for name, text in labels.items()]
    lines = [f"{code}: {name}" for code, name in zip("ABC"[: len(named)], named, strict=True)]
    return "Label the text.\n" + "\n".join(lines)


def messages(user: str = TEXT, labels: dict[str, str] = LABELS, *more: dict[str, str]) -> list[Any]:
    return [{"role": "system", "content": listed(labels)}, {"role": "user", "content": user}, *more]


def asked(client: openai.OpenAI, user: str = TEXT, labels: dict[str, str] = LABELS, **more: Any) -> ChatCompletion:
    return client.chat.completions.create(model="alias", **{"messages": messages(user, labels)} | more)


def schema(properties: dict[str, Any]) -> dict[str, Any]:
    closed = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"name": "answer", "strict": True, "schema": closed}


def by_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": schema(properties)}}


def by_tool(properties: dict[str, Any]) -> dict[str, Any]:
    function = {"name": "answer", "strict": True, "parameters": schema(properties)["schema"]}
    tools = [
        {"type": "function", "function": {"name": "no", "parameters": {}}},
        {"type": "function", "function": function},
    ]
    return {"tools": tools, "tool_choice": {"type": "function", "function": {"name": "answer"}}}


LABEL = {"label": {"type": "string", "enum": [*ROW]}}
NUMBERS = {label: {"type": "number"} for label in ROW}


def content(reply: ChatCompletion) -> str:
    return str(reply.choices[0].message.content)


def first_candidates(reply: ChatCompletion) -> dict[str, float]:
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content
    return {each.token: each.logprob for each in reply.choices[0].logprobs.content[0].top_logprobs}


def test_log_probabilities_of_codes_are_the_tables(client: openai.OpenAI) -> None:
    reply = asked(client, **LOGPROBS)
    found = {CODES[code]: math.exp(logprob) for code, logprob in first_candidates(reply).items()}
    assert found == pytest.approx(ROW)
    assert (content(reply), reply.model, reply.object) == ("A", RESOLVED, "chat.completion")
    assert reply.choices[0].finish_reason == "stop"


def test_as_many_candidates_come_as_were_asked_for(client: openai.OpenAI) -> None:
    assert list(first_candidates(asked(client, logprobs=True, top_logprobs=2))) == ["A", "B"]
    with pytest.raises(openai.BadRequestError):
        asked(client, logprobs=True, top_logprobs=21)


def test_schemas_and_tools_give_labels_and_stated_probabilities(client: openai.OpenAI) -> None:
    for form in (by_schema, by_tool):
        for properties, expected in ((LABEL, {"label": "refund"}), (NUMBERS, ROW)):
            message = asked(client, **form(properties)).choices[0].message
            if form is by_tool:
                assert message.tool_calls is not None
                (call,) = message.tool_calls
                assert call.type == "function"
                assert (call.function.name, message.content) == ("answer", None)
                assert json.loads(call.function.arguments) == pytest.approx(expected)
            else:
                assert message.tool_calls is None
                assert json.loads(str(message.content)) == pytest.approx(expected)


def test_codes_may_be_a_schemas_names(client: openai.OpenAI) -> None:
    stated = json.loads(content(asked(client, **by_schema({code: {"type": "number"} for code in CODES}))))
    assert {CODES[code]: value for code, value in stated.items()} == pytest.approx(ROW)


def test_json_may_be_asked_for_in_words(client: openai.OpenAI) -> None:
    for rule, expected in (
        ('JSON {"label": NAME}', {"label": "refund"}),
        ("a JSON object", {code: ROW[label] for code, label in CODES.items()}),
    ):
        told = messages()
        told[0]["content"] += f"\nAnswer with {rule}."
        assert json.loads(content(asked(client, messages=told))) == pytest.approx(expected)


@pytest.mark.parametrize(
    "user", [LONGER, f"<text>{LONGER}</text>\nRefund?", f"BEGIN 1\n{LONGER}\nEND 1", f"The text: {LONGER}"]
)
def test_the_longest_text_of_the_table_is_meant(client: openai.OpenAI, user: str) -> None:
    assert content(asked(client, user)) == "C"


def test_examples_before_and_corrections_after_are_not_the_text(client: openai.OpenAI, stub: Stub) -> None:
    told = messages(f"<text>{TEXT}</text>")
    told += [{"role": "assistant", "content": "A"}, {"role": "user", "content": f"<text>{LONGER}</text>"}]
    told += [{"role": "assistant", "content": "D"}, {"role": "user", "content": "D is not a code."}]
    assert content(asked(client, messages=told)) == "C"
    assert stub.ids == {LONGER: 1}


def test_other_texts_are_answered_by_their_hash_in_any_order_of_labels(client: openai.OpenAI) -> None:
    def found(user: str, names: list[str]) -> dict[str, float]:
        reply = asked(client, user, dict.fromkeys(names, ""), **LOGPROBS)
        return {names["ABC".index(code)]: logprob for code, logprob in first_candidates(reply).items()}

    one, other = found("Unknown", ["a", "b", "c"]), found("Unknown", ["c", "a", "b"])
    assert one == pytest.approx(other)
    assert sum(map(math.exp, one.values())) == pytest.approx(1)
    assert found("Not known", ["a", "b", "c"]) != pytest.approx(one)
    for framed in ("Read this:\n<text>\nUnknown\n</text>", "BEGIN 1\nUnknown\nEND 1"):
        assert found(framed, ["a", "b", "c"]) == pytest.approx(one)


def test_yes_and_no_are_a_nouls_true_and_false(client: openai.OpenAI) -> None:
    found = first_candidates(asked(client, "Good?", {"no": "", "yes": ""}, **LOGPROBS))
    assert {code: math.exp(logprob) for code, logprob in found.items()} == pytest.approx({"A": 0.25, "B": 0.75})


def test_samples_are_drawn_from_the_probabilities_and_only_if_warm(client: openai.OpenAI) -> None:
    votes: Counter[str] = Counter()
    for _ in range(30):
        votes.update(choice.message.content or "" for choice in asked(client, temperature=1, n=20).choices)
    for code, label in CODES.items():  # five standard errors
        assert abs(votes[code] / 600 - ROW[label]) < 5 * math.sqrt(ROW[label] * (1 - ROW[label]) / 600)
    cold = [asked(client, temperature=0, n=20), asked(client, n=20)]
    assert {choice.message.content for reply in cold for choice in reply.choices} == {"A"}


@pytest.mark.parametrize("form", ["none", "zero", "9999", "missing", "alone"])
def test_bad_log_probabilities_come_as_they_are_named(client: openai.OpenAI, stub: Stub, form: str) -> None:
    stub.behaviour.chat = chat_behaviour([f"logprobs_{form}"])
    reply = asked(client, **LOGPROBS)
    assert content(reply) == "A"
    if form in ("none", "missing"):
        assert reply.choices[0].logprobs is None
        assert ("logprobs" in reply.choices[0].model_fields_set) == (form == "none")
    else:
        expected = {"zero": dict.fromkeys("ABC", 0.0), "9999": dict.fromkeys("ABC", -9999.0)}
        assert first_candidates(reply) == pytest.approx(expected.get(form, {"A": math.log(ROW["refund"])}))


@pytest.mark.parametrize(
    ("name", "more", "key"),
    [
        ("no_schema", by_schema(LABEL), "response_format"),
        ("no_tools", by_tool(LABEL), "tools"),
        ("no_temperature", {"temperature": 0}, "temperature"),
        ("no_logprobs", {"logprobs": True}, "logprobs"),
    ],
)
def test_what_the_model_does_not_take_is_refused(
    client: openai.OpenAI, stub: Stub, name: str, more: dict[str, Any], key: str
) -> None:
    asked(client, **more)
    stub.behaviour.chat = chat_behaviour([name])
    with pytest.raises(openai.BadRequestError) as refused:
        asked(client, **more)
    assert refused.value.param == key
    asked(client)
    assert stub.charged["requests"] == 2


def test_a_strict_schema_must_be_one(client: openai.OpenAI) -> None:
    form = by_schema(LABEL)
    form["response_format"]["json_schema"]["schema"].pop("required")
    with pytest.raises(openai.BadRequestError, match="strict"):
        asked(client, **form)


def test_a_request_without_labels_or_messages_is_refused(client: openai.OpenAI) -> None:
    user = {"role": "user", "content": TEXT}
    for told, why in (([], "form"), ([user], "no labels"), ([user | {"content": 7}], "form")):
        with pytest.raises(openai.BadRequestError, match=why):
            asked(client, messages=told)


def test_reasoning_stands_before_the_answer_and_counts(client: openai.OpenAI, stub: Stub) -> None:
    stub.behaviour.chat.think = True
    reply = asked(client, **LOGPROBS)
    assert content(reply) == "<think> A or B ? </think> A"
    assert list(first_candidates(reply)) == ["<think>"]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content
    assert "".join(each.token for each in reply.choices[0].logprobs.content) == content(reply)
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 5
    cut = asked(client, max_completion_tokens=3)
    assert (content(cut), cut.choices[0].finish_reason) == ("<think> A or", "length")


def test_the_order_bias_is_added_to_the_logit_of_the_first_option(client: openai.OpenAI, stub: Stub) -> None:
    stub.behaviour.chat.order_bias = math.log(2)
    ways = (LABELS, dict(reversed(LABELS.items())))
    for labels in ways:
        first = next(iter(labels))
        weights = {label: p * (2 if label == first else 1) for label, p in ROW.items()}
        expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
        stated = json.loads(content(asked(client, labels=labels, **by_schema(NUMBERS))))
        assert stated == pytest.approx(expected)


def test_a_share_of_calls_is_answered_outside_until_corrected(client: openai.OpenAI, stub: Stub) -> None:
    stub.behaviour.chat.outside = 0.3
    stub.table = {f"text {number:03}": ROW for number in range(100)}
    outside = []
    for text in stub.table:
        replies = {content(asked(client, text, temperature=0)) for _ in range(2)}
        assert len(replies) == 1
        outside += [text] if OUTSIDE in replies else []
    assert 15 < len(outside) < 45  # 30, and three standard errors
    stub.behaviour.chat.outside = 1.0
    correction = [{"role": "assistant", "content": OUTSIDE}, {"role": "user", "content": "That is no code."}]
    assert content(asked(client, messages=messages(outside[0]) + correction)) == "A"
    found = first_candidates(asked(client, **LOGPROBS))
    assert max(found, key=found.__getitem__) == OUTSIDE
    assert json.loads(content(asked(client, **by_schema(LABEL)))) == {"label": OUTSIDE}
    assert sum(map(math.exp, found.values())) == pytest.approx(1)


def test_a_refusal_has_no_content(client: openai.OpenAI, stub: Stub) -> None:
    stub.behaviour.chat.refuse = 1.0
    message = asked(client).choices[0].message
    assert message.refusal
    assert message.content is None


def test_faults_are_made_of_chats_too(client: openai.OpenAI, stub: Stub) -> None:
    wrong: dict[str, type[Exception]] = {
        "429": openai.RateLimitError,
        "500": openai.InternalServerError,
        "422": openai.UnprocessableEntityError,
        "reset": openai.APIConnectionError,
        "cut": openai.APIConnectionError,
        "json": json.JSONDecodeError,
        "slow": openai.APITimeoutError,
    }
    for fault, error in wrong.items():
        stub.behaviour.faults, stub.behaviour.slow_s = {fault: 1.0}, 30
        with pytest.raises(error):
            asked(client, timeout=0.5)
    stub.behaviour.faults = {"missing": 1.0}
    assert asked(client).choices == []
    stub.behaviour.faults = {"type": 1.0}
    assert isinstance(asked(client).choices[0].message.content, int)
    stub.behaviour.faults = {"chunked": 1.0}
    assert content(asked(client)) == "A"


def test_what_is_charged_is_what_was_answered_with_200_by_all_three(client: openai.OpenAI, stub: Stub) -> None:
    questions = {"q": {"type": "noul"}, "r": {"type": "noul"}}
    decisions = [{"type": "predicate", "name": name} for name in questions]
    replies = [asked(client), asked(client, LONGER, temperature=1, n=2)]
    assert httpx2.post(stub.url + SYSTEM_ONE, json={"state": TEXT, "questions": questions}).status_code == 200
    assert httpx2.post(stub.url + DECISIONS, json={"input": TEXT, "questions": decisions}).status_code == 200
    for fault in ("429", "500", "503", "422", "reset"):
        stub.behaviour.faults = {fault: 1.0}
        with pytest.raises(openai.APIError):
            asked(client)
    stub.behaviour.faults = {"redirect": 1.0}
    assert httpx2.post(stub.url + CHAT, json={"model": "alias", "messages": messages()}).status_code == 307
    usages = [reply.usage for reply in replies if reply.usage is not None]
    assert [usage.prompt_tokens for usage in usages] == [
        len((listed(LABELS) + " " + text).split()) for text in (TEXT, LONGER)
    ]
    assert [usage.completion_tokens for usage in usages] == [1, 2]
    expected = {
        "requests": 4,
        "input_tokens": 2 * INPUT_TOKENS + sum(usage.prompt_tokens for usage in usages),
        "output_tokens": 4 * OUTPUT_TOKENS + 3,
    }
    assert httpx2.get(f"{stub.url}/stub").json()["charged"] == expected
    stub.behaviour.faults = {"cut": 1.0}
    with pytest.raises(openai.APIConnectionError):
        asked(client)
    assert stub.charged["requests"] == 5


def test_behaviours_are_read_by_their_names() -> None:
    named = chat_behaviour(["logprobs_zero", "no_tools", "think", "order_bias=-1.5", "outside=0.1"])
    assert named == ChatBehaviour(logprobs="zero", no_tools=True, think=True, order_bias=-1.5, outside=0.1)
    assert chat_behaviour(["logprobs"]) == ChatBehaviour()
    for name in ("logprobs_odd", "thinks", "outside", "think=1", "logprobs=1"):
        with pytest.raises(ValueError, match="no such behaviour"):
            chat_behaviour([name])


def test_wrong_keys_are_told_in_the_apis_form(client: openai.OpenAI, stub: Stub) -> None:
    stub.behaviour.keys = frozenset({"Bearer other"})
    with pytest.raises(openai.AuthenticationError) as refused:
        asked(client)
    assert refused.value.type == "authentication_error"
    assert stub.targets == {CHAT: 1}
