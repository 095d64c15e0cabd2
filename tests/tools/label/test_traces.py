"""`kdc label --traces`: texts and answers of logs, in every form; what is no answer is counted and never guessed."""

import csv
import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Decision
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import ValidationError

from kdc.artifact.question_forms import question_of
from kdc.common.errors import InputError
from kdc.pipeline.config.labelled import read_description
from kdc.tools.label.spec import Spec
from kdc.tools.label.traces import Trace, TraceCounts, label_traces, read_traces

Json = dict[str, Any]
LABELS = ("refund", "delivery", "other")
ONLY = {label: tuple(float(label == own) for own in LABELS) for label in LABELS}  # certain answers
CRITERIA = {"refund": "money back", "delivery": None, "other": None}
ASKED = {"type": "choice", "instructions": "What?", "criteria": CRITERIA}  # TypeSafe's form
CHOICES = [{"value": name} | ({"description": text} if text else {}) for name, text in CRITERIA.items()]
DECISION = {"type": "choice", "name": "want", "instructions": "What?", "choices": CHOICES[::-1]}  # OpenAI's
SPAM = {"type": "noul", "instructions": "Spam?"}
TEXT = "Where is my money?"


def spec_of(question: Json = ASKED, **more: Any) -> Spec:
    source = {"kind": "chat", "url": "http://localhost/v1", "model": "m"}
    return Spec.model_validate({"source": source, "question": question, **more})


def read_rows(folder: Path, rows: Iterable[Any], spec: Spec | None = None) -> tuple[list[Trace], TraceCounts]:
    """Rows that are text are lines as they are."""
    file = folder / "log.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_traces(file, spec or spec_of())


def only_trace(folder: Path, row: Any, spec: Spec | None = None) -> Trace:
    traces, counts = read_rows(folder, [row], spec)
    assert counts.usable == 1, counts
    return traces[0]


def chat_request(text: Any = TEXT) -> Json:
    turns = [{"role": "user", "content": "Earlier"}, {"role": "assistant", "content": "other"}]
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "Label."}, *turns, {"role": "user", "content": text}],
    }


def completion(content: str | None, *, logprobs: Json | None = None, ended: str = "stop", **message: Any) -> Json:
    """What OpenAI's client takes as a chat completion."""
    whole = {"role": "assistant", "content": content, "refusal": None, **message}
    choice = {"index": 0, "finish_reason": ended, "logprobs": logprobs, "message": whole}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "m-2026-01-01", "choices": [choice]}
    return ChatCompletion.model_validate(document).to_dict()


def tool_call(arguments: str) -> Json:
    return {"id": "t", "type": "function", "function": {"name": "answer", "arguments": arguments}}


def response_of(*output: Json, status: str = "completed") -> Json:
    """What OpenAI's client takes as a response."""
    document = {"id": "r", "object": "response", "created_at": 1, "model": "m-2026-01-01", "output": list(output)}
    rest = {"parallel_tool_calls": False, "tool_choice": "auto", "tools": [], "status": status}
    return Response.model_validate(document | rest).to_dict()


def output_message(text: str, logprobs: list[Json] | None = None) -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def token(text: str, **candidates: float) -> Json:
    """The log-probabilities of an answer's token, from probabilities."""
    tops = [{"token": name, "logprob": math.log(p), "bytes": []} for name, p in candidates.items()]
    return {"token": text, "logprob": math.log(candidates[text]), "bytes": [], "top_logprobs": tops}


def decision(*answers: Json) -> Json:
    """What OpenAI's client takes as a decision."""
    details = {
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    usage = {"input_tokens": 1, "output_tokens": 0, "total_tokens": 1} | details
    document = {"model": "m-2026-01-01", "answers": list(answers), "usage": usage}
    return Decision.model_validate(document).to_dict()


def choice_answer(refund: float, delivery: float, other: float) -> Json:
    values = {"other": other, "refund": refund, "delivery": delivery}
    probabilities = [{"value": name, "probability": p} for name, p in values.items()]
    best = max(values, key=values.__getitem__)
    return {"type": "choice", "name": "want", "choice": best, "confidence": 0.5, "probabilities": probabilities}


REASONING = {"id": "x", "type": "reasoning", "summary": []}
CALL = {"type": "function_call", "call_id": "c", "name": "answer", "arguments": '{"label": "refund"}'}
EXCHANGES: dict[str, tuple[Json, Json]] = {
    "chat": (chat_request(), completion("refund")),
    "chat, text in parts": (chat_request([{"type": "text", "text": TEXT}]), completion("refund")),
    "chat, tool call": (chat_request(), completion(None, tool_calls=[tool_call('{"label": "refund"}')])),
    "responses": ({"model": "m", "input": TEXT}, response_of(REASONING, output_message("refund"))),
    "responses, messages": (
        {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]},
        response_of(output_message("refund")),
    ),
    "responses, tool call": ({"model": "m", "input": TEXT}, response_of(REASONING, CALL)),
}


@pytest.mark.parametrize("form", EXCHANGES)
def test_a_request_and_its_reply_give_the_text_and_the_label(form: str, tmp_path: Path) -> None:
    request, reply = EXCHANGES[form]
    trace = only_trace(tmp_path, {"request": request, "response": reply})
    assert (trace.text, trace.answer.probabilities, trace.answer.how) == (TEXT, ONLY["refund"], "bare")
    assert trace.model == "m-2026-01-01"


@pytest.mark.parametrize(
    "envelope",
    [
        lambda request, reply: {"input": request, "output": reply},
        lambda request, reply: {"request": json.dumps(request), "response": json.dumps(reply)},
        lambda request, reply: {"custom_id": "1", "body": request, "response": {"status_code": 200, "body": reply}},
        lambda request, reply: {
            "request": {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": request},
            "response": {"custom_id": "1", "response": {"status_code": 200, "body": reply}, "error": None},
        },
    ],
    ids=["input and output", "JSON as text", "joined batch files", "nested batch files"],
)
def test_envelopes_of_logs_are_opened(envelope: Callable[[Json, Json], Json], tmp_path: Path) -> None:
    trace = only_trace(tmp_path, envelope(*EXCHANGES["chat"]))
    assert (trace.text, trace.answer.probabilities) == (TEXT, ONLY["refund"])


def test_a_decision_gives_its_probabilities_in_the_order_of_the_labels(tmp_path: Path) -> None:
    request = {"model": "m", "input": TEXT, "questions": [{"type": "predicate", "instructions": "Late?"}, DECISION]}
    reply = decision({"type": "predicate", "probability": 0.9}, choice_answer(0.2, 0.7, 0.1))
    trace = only_trace(tmp_path, {"request": request, "response": reply})
    assert (trace.text, trace.answer.how, trace.model) == (TEXT, "endpoint", "m-2026-01-01")
    assert trace.answer.probabilities == pytest.approx((0.2, 0.7, 0.1))


def test_a_systemone_answer_gives_its_probabilities_and_the_template_its_text(tmp_path: Path) -> None:
    state = {"subject": "Money", "body": "Where?"}
    given = {"delivery": 0.7, "other": 0.1, "refund": 0.2}
    answers = {
        "late": {"type": "noul", "noul": 0.9},
        "want": {"type": "choice", "choice": "delivery", "confidence": 0.5, "probabilities": given},
    }
    request = {"state": state, "questions": {"late": {"type": "noul", "instructions": "Late?"}, "want": ASKED}}
    spec = spec_of(ASKED | {"template": "{subject}: {body}"})
    trace = only_trace(tmp_path, {"request": request, "response": {"model": "jev", "answers": answers}}, spec)
    assert (trace.text, trace.answer.how, trace.model) == ("Money: Where?", "endpoint", "jev")
    assert trace.answer.probabilities == pytest.approx((0.2, 0.7, 0.1))


def test_a_yes_or_no_question_gives_false_and_true(tmp_path: Path) -> None:
    """Both APIs give a probability; a chat model may say yes."""
    asked = {"state": "a", "questions": {"q": SPAM}}
    decided = {"input": "b", "questions": [{"type": "predicate", "instructions": "Spam?"}]}
    rows = [
        {"request": asked, "response": {"answers": {"q": {"type": "noul", "noul": 0.25}}}},
        {"request": decided, "response": decision({"type": "predicate", "probability": 0.125})},
        {"request": chat_request("c"), "response": completion('{"spam": true}')},
        {"request": chat_request("d"), "response": completion("No.")},
    ]
    traces, _ = read_rows(tmp_path, rows, spec_of(SPAM))
    assert [trace.answer.probabilities for trace in traces] == [(0.75, 0.25), (0.875, 0.125), (0, 1), (1, 0)]


def test_another_question_is_not_read(tmp_path: Path) -> None:
    """Neither in the same words with other options, nor beside other questions; a batch's output has no text."""
    fewer = ASKED | {"criteria": {"refund": "money back", "delivery": None}}
    answer = {"type": "choice", "choice": "refund", "probabilities": {"refund": 1.0, "delivery": 0.0}}
    rows = [
        {"request": {"state": TEXT, "questions": {"q": fewer}}, "response": {"answers": {"q": answer}}},
        {
            "request": {"input": TEXT, "questions": [DECISION | {"instructions": "Who?"}]},
            "response": decision(choice_answer(1, 0, 0)),
        },
        {"custom_id": "1", "response": {"status_code": 200, "body": completion("refund")}, "error": None},
        {"anything": "else"},
    ]
    traces, counts = read_rows(tmp_path, rows)
    assert (traces, counts.other) == ([], len(rows))


def test_a_fine_tuning_file_gives_its_last_answer(tmp_path: Path) -> None:
    messages = [*chat_request()["messages"], {"role": "assistant", "content": "refund", "weight": 1}]
    trace = only_trace(tmp_path, {"messages": messages})
    assert (trace.text, trace.answer.probabilities, trace.model) == (TEXT, ONLY["refund"], None)


def write_table(file: Path, rows: list[Json]) -> None:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_gives_labels_or_probabilities(ending: str, tmp_path: Path) -> None:
    labelled, scored = tmp_path / f"labelled.{ending}", tmp_path / f"scored.{ending}"
    write_table(labelled, [{"body": "a, b", "answer": "Refund"}, {"body": "c", "answer": "nothing"}])
    row = {"body": "a, b", "label": "refund", "refund": 0.25, "delivery": 0.5, "other": 0.25, "how": "votes"}
    write_table(scored, [row, row | {"body": "c", "refund": 0.9}])
    traces, counts = read_traces(labelled, spec_of(text="body"))
    assert [(trace.text, trace.answer.probabilities) for trace in traces] == [("a, b", ONLY["refund"])]
    assert (counts.usable, counts.outside) == (1, 1)
    traces, counts = read_traces(scored, spec_of(text="body"))
    assert [(each.text, each.answer.probabilities, each.answer.how) for each in traces] == [
        ("a, b", (0.25, 0.5, 0.25), "votes")
    ]
    assert (counts.usable, counts.unreadable) == (1, 1)


def test_a_table_of_requests_and_replies_is_read(tmp_path: Path) -> None:
    """As structs of Parquet, where a missing key is null."""
    request, reply = EXCHANGES["chat"]
    write_table(tmp_path / "log.parquet", [{"request": request, "response": reply}])
    traces, _ = read_traces(tmp_path / "log.parquet", spec_of())
    assert [(trace.text, trace.answer.probabilities) for trace in traces] == [(TEXT, ONLY["refund"])]


@pytest.mark.parametrize(
    "content",
    [
        "refund",
        ' "Refund".\n',
        '```json\n{"intent": "refund"}\n```',
        "```\nREFUND\n```",
        "<think>delivery? no, other</think>\n\nrefund",
        '{"reason": "It is about money, not delivery.", "intent": "refund"}',
        '{"label": "refund", "second": "delivery"}',
    ],
)
def test_an_answer_is_read_in_any_dress(content: str, tmp_path: Path) -> None:
    trace = only_trace(tmp_path, {"request": chat_request(), "response": completion(content)})
    assert trace.answer.probabilities == ONLY["refund"]


@pytest.mark.parametrize(
    "content",
    [
        "The customer wants a refund.",
        "refund or delivery",
        "refunds",
        '{"reason": "a refund is wanted"}',
        '{"first": "refund", "second": "delivery"}',
        '{"label": "unknown", "second": "refund"}',
        '{"label": ["refund"]}',
        '["refund"]',
        "refund <think>or not</think> I do not know",
    ],
)
def test_what_is_no_label_is_counted_and_not_guessed(content: str, tmp_path: Path) -> None:
    traces, counts = read_rows(tmp_path, [{"request": chat_request(), "response": completion(content)}])
    assert (traces, counts.outside, counts.rows) == ([], 1, 1)


def test_case_decides_between_labels_that_differ_in_nothing_else(tmp_path: Path) -> None:
    spec = spec_of({"type": "choice", "criteria": {"US": None, "us": None}})
    rows = [{"request": chat_request(word), "response": completion(word)} for word in ("US", "us", "Us")]
    traces, counts = read_rows(tmp_path, rows, spec)
    assert [trace.answer.label(spec.labels) for trace in traces] == ["US", "us"]
    assert counts.outside == 1


def test_a_cut_answer_that_may_go_on_is_no_label(tmp_path: Path) -> None:
    spec = spec_of({"type": "choice", "criteria": {"card": None, "card lost": None, "fee": None}})
    words = ("card", "fee", "card lost")
    rows = [{"request": chat_request(word), "response": completion(word, ended="length")} for word in words]
    traces, counts = read_rows(tmp_path, rows, spec)
    assert ([trace.text for trace in traces], counts.outside) == (["fee", "card lost"], 1)


def test_the_model_that_refuses_gave_no_answer(tmp_path: Path) -> None:
    rows = [
        {"request": chat_request(), "response": completion(None, refusal="I cannot.")},
        {
            "request": {"input": TEXT, "questions": [DECISION]},
            "response": decision({"type": "refusal", "name": "want"}),
        },
        {"request": chat_request(), "response": {"status_code": 500, "body": {"error": {"message": "overloaded"}}}},
    ]
    traces, counts = read_rows(tmp_path, rows)
    assert (traces, counts.unreadable) == ([], 3)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_log_probabilities_of_a_label_that_is_one_token_are_renormalised(api: str, tmp_path: Path) -> None:
    tokens = [token("refund", refund=0.5, **{" Delivery": 0.2, " delivery": 0.1, "I": 0.1})]
    if api == "chat":
        row = {"request": chat_request(), "response": completion("refund", logprobs={"content": tokens})}
    else:
        row = {"request": {"input": TEXT}, "response": response_of(output_message("refund", tokens))}
    trace = only_trace(tmp_path, row)
    assert trace.answer.how == "logprobs"
    assert trace.answer.probabilities == pytest.approx((0.5 / 0.8, 0.3 / 0.8, 0))


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("refund", [{"token": "refund", "logprob": 0.0, "top_logprobs": []}]),
        ("refund", [token("refund", refund=0.2, delivery=0.2, I=0.4)]),
        ("refund", [token("ref", ref=0.2, delivery=0.5, other=0.3), token("und", und=1.0)]),
        ("refund", [{"token": "refund", "logprob": 0, "top_logprobs": [{"token": "delivery", "logprob": -9999}]}]),
        ("refund", [{"token": "refund", "logprob": "-1"}]),
    ],
    ids=["one", "little mass", "a part of a label", "-9999", "wrong type"],
)
def test_log_probabilities_that_tell_nothing_leave_the_answer_alone(
    content: str, tokens: list[Json], tmp_path: Path
) -> None:
    reply = completion(content)
    reply["choices"][0]["logprobs"] = {"content": tokens}
    trace = only_trace(tmp_path, {"request": chat_request(), "response": reply})
    assert (trace.answer.how, trace.answer.probabilities) == ("bare", ONLY["refund"])


def test_the_prompt_is_taken_off_exactly(tmp_path: Path) -> None:
    spec = spec_of(prompt="Label this:\n{text}\nAnswer:")
    sent = [
        "Label this:\n  a {text}\nAnswer:",
        "Label this:\nmore than the end",
        "label this:\nc\nAnswer:",
        "Label this:\nAnswer:",
    ]
    rows = [{"request": chat_request(text), "response": completion("refund")} for text in sent]
    traces, counts = read_rows(tmp_path, rows, spec)
    assert [trace.text for trace in traces] == ["  a {text}"]
    assert counts.other == 3


@pytest.mark.parametrize("prompt", ["Label this", "{text} {text}"])
def test_a_prompt_without_one_text_is_refused(prompt: str) -> None:
    with pytest.raises(ValidationError, match="once"):
        spec_of(prompt=prompt)


def test_answers_to_one_text_are_averaged(tmp_path: Path) -> None:
    decided = {"input": "b", "questions": [DECISION]}
    rows: list[Json] = [
        {"text": "a", "label": "refund"},
        {"request": decided, "response": decision(choice_answer(0.5, 0.25, 0.25))},
        {"text": "a", "label": "delivery", "model": "late"},
        {"request": decided, "response": decision(choice_answer(0, 0.75, 0.25))},
        {"text": "c", "label": "other"},
        {"text": "b", "label": "other"},
    ]
    traces, counts = read_rows(tmp_path, rows)
    assert [trace.text for trace in traces] == ["a", "b", "c"]
    assert [trace.answer.how for trace in traces] == ["bare", "bare", "bare"]
    assert traces[0].answer.probabilities == pytest.approx((0.5, 0.5, 0))
    assert traces[1].answer.probabilities == pytest.approx((0.5 / 3, 1 / 3, 1.5 / 3))
    assert (counts.rows, counts.usable, counts.duplicates, counts.disagreeing) == (6, 6, 3, 2)


def test_self_agreement_is_of_pairs_of_answers_to_one_text(tmp_path: Path) -> None:
    """a: refund x3, other x1: 3 of 6 pairs are equal. b: other x2: 1 of 1. c and d have no pair: 4 of 7."""
    answers = {"a": ["refund", "other", "refund", "refund"], "b": ["other", "other"], "c": ["refund"], "d": ["other"]}
    rows = [{"text": text, "label": label} for text, labels in answers.items() for label in labels]
    random.Random(0).shuffle(rows)
    _, counts = read_rows(tmp_path, rows)
    assert (counts.self_agreement, counts.pairs) == (4 / 7, 7)
    assert (counts.duplicates, counts.disagreeing) == (4, 1)


def test_texts_that_occur_once_tell_no_self_agreement(tmp_path: Path) -> None:
    _, counts = read_rows(tmp_path, [{"text": "a", "label": "refund"}])
    assert (counts.self_agreement, counts.pairs) == (None, 0)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps({"text": "a", "label": "refund"}) + "\n")
    told: list[tuple[int, int]] = []
    read_traces(file, spec_of(), lambda done, rows: told.append((done, rows)))
    assert told[-1] == (file.stat().st_size, 1)


def test_what_is_written_names_the_model_for_kdc_compress(tmp_path: Path) -> None:
    """Would catch a description that `kdc compress --train` refuses as damaged."""
    write_table(tmp_path / "log.csv", [{"text": "a", "answer": "refund"}, {"text": "b", "answer": "other"}])
    label_traces(spec_of(), tmp_path / "log.csv", str(tmp_path / "out.csv"))
    description = read_description(tmp_path / "out.csv")
    assert description is not None
    assert (description.text, description.model, description.how) == ("text", "m", {"bare": 2})
    assert description.usd_per_million_texts is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no input"):
        read_traces(tmp_path / "none.jsonl", spec_of())


GOOD = [
    *({"request": request, "response": reply} for request, reply in EXCHANGES.values()),
    {"request": {"input": TEXT, "questions": [DECISION]}, "response": decision(choice_answer(0.2, 0.7, 0.1))},
    {
        "request": {"state": {"a": [1]}, "questions": {"q": ASKED}},
        "response": {
            "answers": {"q": {"type": "choice", "choice": "refund", "probabilities": dict.fromkeys(LABELS, 0)}}
        },
    },
    {"request": chat_request(), "response": completion("refund", logprobs={"content": [token("refund", refund=0.5)]})},
    {"messages": [*chat_request()["messages"], {"role": "assistant", "content": "refund"}]},
    {"text": TEXT, "label": "refund"},
    {"text": TEXT, "refund": 0.5, "delivery": 0.5, "other": 0.0},
]
DEEP = json.loads("[" * 500 + "]" * 500)
BAD = [
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    "",
    "\ud800",
    "{",
    '{"a": 1',
    [],
    {},
    [None],
    [[]],
    {"": None},
    DEEP,
    "refund",
]


def damaged(value: Any, chance: random.Random) -> Any:
    """A value of which one part, at any depth, is another or is missing."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(BAD)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy: Any = value.copy()
    if chance.random() < 0.15:
        del copy[key]
    else:
        copy[key] = damaged(copy[key], chance)
    return copy


def check_all_are_counted(folder: Path, rows: list[Any], spec: Spec) -> None:
    traces, counts = read_rows(folder, rows, spec)
    assert counts.rows == len(rows)
    assert counts.usable + counts.outside + counts.unreadable + counts.other == len(rows)
    assert len(traces) == counts.usable - counts.duplicates
    for trace in traces:
        assert trace.text.encode().strip()
        assert math.isclose(sum(trace.answer.probabilities), 1)


def test_damaged_rows_raise_nothing_and_all_are_counted(tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = [damaged(chance.choice(GOOD), chance) for _ in range(6000)]
    lines = [json.dumps(row) for row in rows]
    lines += [line[: chance.randint(1, len(line))] for line in lines[:500]]  # JSON cut anywhere
    check_all_are_counted(tmp_path, lines, spec_of())
    check_all_are_counted(tmp_path, lines, spec_of(ASKED | {"template": "{a}"}, prompt="Where {text}"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(LABELS),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "choices", "message", "output"]), inner)
    ),
)


def test_half_a_surrogate_pair_and_an_option_that_is_no_name_are_unreadable(tmp_path: Path) -> None:
    """The text is in JSON inside JSON, where no reader of tables sees it."""
    broken = decision(choice_answer(0.2, 0.7, 0.1))
    broken["answers"][0]["probabilities"][0]["value"] = ["refund"]
    rows = [
        {"request": json.dumps(chat_request("a \ud800")), "response": completion("refund")},
        {"request": {"input": TEXT, "questions": [DECISION]}, "response": broken},
    ]
    _, counts = read_rows(tmp_path, rows)
    assert counts.unreadable == 2


@given(st.fixed_dictionaries({"request": JSON, "response": JSON, "messages": JSON, "text": JSON, "label": JSON}))
def test_any_json_is_counted(tmp_path_factory: pytest.TempPathFactory, row: Json) -> None:
    for key in (*row, None):
        rest = {name: value for name, value in row.items() if name != key}
        check_all_are_counted(tmp_path_factory.getbasetemp(), [rest], spec_of())


def test_parquets_values_beyond_json_raise_nothing(tmp_path: Path) -> None:
    """A state of bytes, a NaN, a date as the text."""
    asked = {"questions": {"q": ASKED}}
    tables: list[Json] = [
        {"request": asked | {"state": {"a": b"\xff"}}, "response": {"answers": {"q": {"type": "noul"}}}},
        {"text": "a", "refund": math.nan, "delivery": 0.5, "other": 0.5},
        {"text": b"\xff", "label": "refund"},
    ]
    for number, row in enumerate(tables):
        write_table(tmp_path / f"{number}.parquet", [row])
        _, counts = read_traces(tmp_path / f"{number}.parquet", spec_of())
        assert counts.unreadable == 1


def test_the_question_here_is_the_same_in_both_apis() -> None:
    """The oracle of the tests above: they ask the spec's question."""
    assert question_of(DECISION).fingerprint == question_of(ASKED).fingerprint == spec_of().question.fingerprint
