"""`kdc label` before a stub of a hosted model: what it recovers, loses, pays and tells."""

import asyncio
import csv
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.serving import stub_connection
from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import INPUT_TOKENS, OUTPUT_TOKENS
from benchmarks.serving.stub_chat import RESOLVED, ChatBehaviour
from benchmarks.serving.stub_connection import Stub
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.scores import Scores
from kdc.tools.label import asking
from kdc.tools.label.decisions import Decisions
from kdc.tools.label.results import BatchWritten, Estimate, Labelled
from kdc.tools.label.run import label_table
from kdc.tools.label.source import Call, Unusable
from kdc.tools.label.spec import Spec, read_spec, write_template
from kdc.tools.label.table import Table

LABELS = ("refund", "delivery", "other")
CHOICE = {"type": "choice", "instructions": "What is wanted?", "criteria": dict.fromkeys(LABELS, "")}
NOUL = {"type": "noul", "instructions": "Is the customer angry?"}
TEXTS = [f"message {number}" for number in range(60)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short."""
    monkeypatch.setattr(asking, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(stub_connection, "RETRY_AFTER", 0)


@pytest.fixture
def stub() -> Iterator[Stub]:
    dice = random.Random(3)
    table = {}
    for text in TEXTS:
        weights = [dice.random() + 1e-3 for _ in LABELS]
        table[text] = {label: weight / sum(weights) for label, weight in zip(LABELS, weights, strict=True)}
        table[text]["true"] = dice.random()
    with in_a_thread(Stub(table=table)) as stub:
        yield stub


def spec_for(stub: Stub, kind: str = "systemone", question: dict[str, Any] | None = None, **source: Any) -> Spec:
    prices = source.pop("prices", {})
    more = {name: source.pop(name) for name in ("label",) if name in source}
    model = {"kind": kind, "url": f"{stub.url}/v1", "model": "stub", "concurrency": 8} | source
    return Spec.model_validate({"source": model, "question": question or CHOICE, "prices": prices, **more})


def table_of(folder: Path, texts: list[str], **columns: list[str]) -> str:
    file = folder / "in.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", *columns])
        writer.writerows(zip(range(len(texts)), texts, *columns.values(), strict=True))
    return str(file)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def labelled(*arguments: Any, **more: Any) -> Labelled:
    result = label_table(*arguments, **more)
    assert isinstance(result, Labelled)
    return result


@pytest.mark.parametrize("kind", ["systemone", "decisions"])
@pytest.mark.parametrize("question", [CHOICE, NOUL])
def test_a_decision_endpoints_probabilities_are_recovered(
    kind: str, question: dict[str, Any], stub: Stub, tmp_path: Path
) -> None:
    if kind == "decisions" and question is CHOICE:
        choices = [{"value": label} for label in LABELS]
        question = {"type": "choice", "instructions": "What is wanted?", "choices": choices}
    result = labelled(spec_for(stub, kind, question), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert (result.rows, result.unanswered, result.how) == (len(TEXTS), 0, {"endpoint": len(TEXTS)})
    for text, row in zip(TEXTS, rows_of(tmp_path / "out.csv"), strict=True):
        known = stub.table[text]
        if question is NOUL:
            known = {"false": 1 - known["true"], "true": known["true"]}
        labels = [label for label in known if label != "true" or question is NOUL]
        assert row["text"] == text
        assert row["label"] == max(labels, key=lambda label: known[label])
        assert all(math.isclose(float(row[label]), known[label], abs_tol=1e-9) for label in labels)


@pytest.mark.parametrize(
    ("behaviour", "how", "tolerance"),
    [
        (ChatBehaviour(), "logprobs", 1e-6),
        (ChatBehaviour(order_bias=0.4), "logprobs", 0.07),  # one order alone errs by 0.1
        (ChatBehaviour(logprobs="zero"), "stated", 1e-6),
        (ChatBehaviour(logprobs="9999", think=True), "stated", 1e-6),
        (ChatBehaviour(logprobs="missing", no_schema=True), "stated", 1e-6),
        (ChatBehaviour(no_logprobs=True, outside=0.2), "stated", 1e-6),
        (ChatBehaviour(logprobs="alone", no_schema=True, no_tools=True), "stated", 1e-6),
    ],
)
def test_a_chat_models_probabilities_are_recovered_by_the_best_way_that_it_has(
    behaviour: ChatBehaviour, how: str, tolerance: float, stub: Stub, tmp_path: Path
) -> None:
    stub.behaviour.chat = behaviour
    result = labelled(spec_for(stub, "chat"), table_of(tmp_path, TEXTS[:20]), str(tmp_path / "out.csv"))
    assert (result.rows, result.how, result.resolved) == (20, {how: 20}, [RESOLVED])
    for text, row in zip(TEXTS, rows_of(tmp_path / "out.csv"), strict=False):
        found = {label: float(row[label]) for label in LABELS}
        assert found == pytest.approx({label: stub.table[text][label] for label in LABELS}, abs=tolerance)


def test_votes_recover_the_probabilities_within_their_sampling_error(stub: Stub, tmp_path: Path) -> None:
    spec = spec_for(stub, "chat", probabilities="votes", votes=20)
    result = labelled(spec, table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert (result.how, result.requests) == ({"votes": 60}, 60 * 20)
    rows = rows_of(tmp_path / "out.csv")
    for label in LABELS:
        errors = [float(row[label]) - stub.table[row["text"]][label] for row in rows]
        shares = [stub.table[row["text"]][label] for row in rows]
        # Half a vote for each label draws shares towards a third.
        biases = [(20 * share + 0.5) / 21.5 - share for share in shares]
        deviation = math.sqrt(sum(share * (1 - share) / 20 for share in shares)) / len(rows)
        assert abs(sum(errors) - sum(biases)) / len(rows) < 4 * deviation


def test_out_is_taken_as_teacher_scores(stub: Stub, tmp_path: Path) -> None:
    labelled(spec_for(stub), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    task = Task(name="mails", kind="classification", text="text", label="label", labels=LABELS, metrics=("accuracy",))
    logits, by_id = Scores(tmp_path / "out.csv", task).by_key()
    assert not by_id
    first = next(iter(logits.values()))
    known = stub.table[TEXTS[0]]
    assert [math.exp(value) for value in first] == pytest.approx([known[label] for label in LABELS], abs=1e-6)


def test_with_faults_every_text_ends_answered_or_counted(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.faults = {"429": 0.04, "500": 0.04, "cut": 0.03, "json": 0.03, "missing": 0.03, "reset": 0.03}
    output = tmp_path / "out.csv"
    result = labelled(spec_for(stub), table_of(tmp_path, TEXTS), str(output))
    rows = rows_of(output)
    assert len(rows) + result.unanswered == len(TEXTS)
    for row in rows:
        assert float(row["refund"]) == pytest.approx(stub.table[row["text"]]["refund"])
    assert result.requests == sum(stub.ids.values())  # each try counts


def test_an_answer_that_is_never_usable_is_counted_with_its_reason(stub: Stub, tmp_path: Path) -> None:
    broken = TEXTS[7]
    stub.table = {text: row for text, row in stub.table.items() if text != broken} | {broken: {"refund": 0.9}}
    spec, output = spec_for(stub, tries=2), tmp_path / "out.csv"
    stub.table[broken] = dict.fromkeys(LABELS, 0.9)  # these are no probabilities
    result = labelled(spec, table_of(tmp_path, TEXTS), str(output))
    assert (result.rows, result.unanswered) == (len(TEXTS) - 1, 1)
    (lost,) = [json.loads(line) for line in Path(f"{output}.unanswered.jsonl").read_text().splitlines()]
    assert (lost["line"], "sum to 1" in lost["reason"]) == (9, True)
    assert stub.ids[broken] == 2
    stub.table[broken] = stub.table[TEXTS[0]]
    assert labelled(spec, str(tmp_path / "in.csv"), str(output)).unanswered == 0  # asked again, and alone
    assert stub.ids[broken] == 3
    assert stub.ids[TEXTS[1]] == 1
    assert not Path(f"{output}.unanswered.jsonl").exists()


@pytest.mark.parametrize("probabilities", ["auto", "stated", "votes"])
def test_a_batch_gives_what_calls_give(probabilities: str, stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.chat = ChatBehaviour(outside=0.2)
    spec = spec_for(stub, "chat", probabilities=probabilities, batch=True)
    source, output, rounds = table_of(tmp_path, TEXTS), tmp_path / "out.csv", 0
    results: Path | None = None
    while isinstance(made := label_table(spec, source, str(output), results=results), BatchWritten):
        rounds += 1
        assert not output.exists()
        lines = [json.loads(line) for line in Path(made.file).read_text().splitlines()]
        assert (len(lines), {line["url"] for line in lines}) == (made.calls, {"/v1/chat/completions"})
        if rounds == 1:
            assert len({line["body"]["messages"][-1]["content"] for line in lines}) == len(TEXTS)  # all at once
        results = tmp_path / "results.jsonl"
        with results.open("w") as stream:
            for line in lines:
                body = httpx2.post(f"{stub.url}{line['url']}", json=line["body"]).json()
                stream.write(
                    json.dumps({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
                )
                stream.write("\n")
    assert 2 <= rounds <= spec.source.tries  # some answers were outside the list
    assert isinstance(made, Labelled)
    assert (made.rows, made.unanswered) == (len(TEXTS), 0)
    if probabilities != "votes":
        for row in rows_of(output):
            assert float(row["refund"]) == pytest.approx(stub.table[row["text"]]["refund"], abs=1e-6)


def test_a_chat_reply_without_an_answer_is_asked_again(stub: Stub, tmp_path: Path) -> None:
    """Would catch a reply without choices that is taken for a model without log-probabilities."""
    stub.behaviour.faults, stub.dice = {"missing": 0.3}, random.Random(1)
    result = labelled(spec_for(stub, "chat"), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert stub.faults["missing"] > 10
    assert result.how == {"logprobs": result.rows}
    assert result.unanswered <= 10  # of 120 calls, a share of 0.3 ** 3 fails in all three tries


def test_a_decision_that_is_refused_is_not_asked_again() -> None:
    """OpenAI's Decisions answer a question with `refusal`. A chat that refuses is not asked again either."""
    calls = []

    async def refuse(call: Call, read: Callable[[dict[str, Any]], Any]) -> Any:
        calls.append(call)
        return read({"model": "stub", "answers": [{"type": "refusal", "name": "label"}]})

    nowhere = Stub()
    nowhere.url = "http://127.0.0.1:9"
    with pytest.raises(Unusable, match="refused"):
        asyncio.run(Decisions(spec_for(nowhere, "decisions")).answer(refuse, "text"))
    assert len(calls) == 1


def test_equal_texts_are_asked_once(stub: Stub, tmp_path: Path) -> None:
    result = labelled(spec_for(stub), table_of(tmp_path, TEXTS[:5] * 4), str(tmp_path / "out.csv"))
    assert (result.rows, result.texts, result.requests) == (20, 5, 5)


def test_a_table_in_another_dialect_is_labelled(stub: Stub, tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-16") as stream:
        csv.writer(stream, delimiter=";").writerows([["n", "text"], *(("€", text) for text in TEXTS[:5])])
    how = {"delimiter": ";", "encoding": "utf-16"}
    labelled(spec_for(stub), str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), **how)
    assert [row["text"] for row in rows_of(tmp_path / "out.csv")] == TEXTS[:5]


def test_rows_with_a_persons_label_are_not_asked(stub: Stub, tmp_path: Path) -> None:
    people = ["other" if number % 3 == 0 else "" for number in range(len(TEXTS))]
    source = table_of(tmp_path, TEXTS, person=people)
    result = labelled(spec_for(stub, label="person"), source, str(tmp_path / "out.csv"))
    assert (result.people, result.texts, sum(stub.ids.values())) == (20, 40, 40)
    for person, row in zip(people, rows_of(tmp_path / "out.csv"), strict=True):
        assert (row["how"] == "people") == bool(person)
        assert not person or (row["label"], float(row["other"])) == ("other", 1.0)


def test_a_sample_is_random_and_does_not_depend_on_the_order(stub: Stub, tmp_path: Path) -> None:
    chosen = []
    for texts in (TEXTS, TEXTS[::-1]):
        table = Table(spec_for(stub), table_of(tmp_path, texts), str(tmp_path / "out.csv"))
        wanted = table.sample(20)
        chosen.append({text for text in TEXTS if wanted(text)})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 20
    assert chosen[0] != set(TEXTS[:20])


def test_a_limit_on_requests_is_never_passed_and_a_higher_one_resumes(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.faults = {"500": 0.2}
    source, output = table_of(tmp_path, TEXTS), tmp_path / "out.csv"
    result = labelled(spec_for(stub), source, str(output), max_requests=30)
    assert sum(stub.ids.values()) == 30
    assert result.limit is not None
    assert 0 < result.rows < 30
    result = labelled(spec_for(stub), source, str(output), max_requests=500)
    assert (result.rows, result.limit) == (len(TEXTS), None)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_limit_on_money_is_never_passed(concurrency: int, stub: Stub, tmp_path: Path) -> None:
    prices = {"input": 1000.0, "output": 2000.0}
    spec = spec_for(stub, prices=prices, most_output_tokens=OUTPUT_TOKENS, concurrency=concurrency)
    call_usd = (1000 * INPUT_TOKENS + 2000 * OUTPUT_TOKENS) / 1e6
    result = labelled(spec, table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"), max_usd=20.5 * call_usd)
    asked = sum(stub.ids.values())
    assert asked * call_usd <= 20.5 * call_usd
    assert result.usd == pytest.approx(asked * call_usd)
    # kdc reserves more than a call costs, and gives the rest back.
    assert asked >= (19 if concurrency == 1 else 10)


def test_a_dry_run_asks_few_texts_and_estimates_all(stub: Stub, tmp_path: Path) -> None:
    spec = spec_for(stub, prices={"request": 0.5})
    source, output = table_of(tmp_path, TEXTS), str(tmp_path / "out.csv")
    estimate = label_table(spec, source, output, dry_run=True)
    assert isinstance(estimate, Estimate)
    assert (estimate.sample, estimate.texts) == (20, len(TEXTS))
    assert estimate.usd == pytest.approx(0.5 * len(TEXTS))
    assert not Path(output).exists()
    labelled(spec, source, output)
    assert set(stub.ids.values()) == {1}  # the sample is not paid again


SCRIPT = """
import sys
from pathlib import Path
from kdc.tools.label.run import label_table
from kdc.tools.label.spec import read_spec
label_table(read_spec(Path(sys.argv[1])), sys.argv[2], sys.argv[3])
"""


def test_killed_runs_lose_no_recorded_answer_and_pay_none_twice(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.delay_s = 0.05
    texts = [f"letter {number}" for number in range(400)]
    source, output, spec = table_of(tmp_path, texts), tmp_path / "out.csv", tmp_path / "spec.toml"
    spec.write_text(
        f'[source]\nkind = "systemone"\nurl = "{stub.url}/v1"\nmodel = "stub"\nconcurrency = 8\n'
        '[question]\ntype = "choice"\ncriteria = { a = "", b = "" }\n'
    )
    command, dice, kills = [sys.executable, "-c", SCRIPT, str(spec), source, str(output)], random.Random(1), 0
    while kills < 3:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = sum(stub.ids.values())
        while sum(stub.ids.values()) < before + 20:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(dice.random() * 0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    before = sum(stub.ids.values())
    assert before < len(texts)
    result = labelled(read_spec(spec), source, str(output))
    assert result.rows == len(texts)
    with sqlite3.connect(f"{output}.ledger") as ledger:
        (answered,) = ledger.execute("SELECT count(*) FROM attempts WHERE outcome = 'answered'").fetchone()
        (under_way,) = ledger.execute("SELECT count(*) FROM attempts WHERE outcome = 'failed'").fetchone()
    assert answered == len(texts)  # no recorded answer was asked for again
    assert 0 < under_way <= 8 * kills
    assert 0 < result.maybe_paid <= 8
    assert result.requests == answered + under_way >= sum(stub.ids.values())


def test_the_key_is_sent_and_kept_nowhere(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "sk-very-secret")
    stub.behaviour.keys = frozenset({"Bearer sk-very-secret"})
    labelled(spec_for(stub, key_env="STUB_KEY"), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert set(stub.keys) == {"Bearer sk-very-secret"}
    for file in tmp_path.iterdir():
        assert b"very-secret" not in file.read_bytes()
        assert file.suffix != ".ledger" or file.stat().st_mode & 0o077 == 0


def test_the_ledger_holds_no_text(stub: Stub, tmp_path: Path) -> None:
    labelled(spec_for(stub), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert b"message 1" not in (tmp_path / "out.csv.ledger").read_bytes()


def test_a_refused_key_ends_the_run_after_the_calls_under_way(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_KEY", "sk-wrong")
    stub.behaviour.keys = frozenset({"Bearer right"})
    with pytest.raises(KdcError, match="refuses the key") as failure:
        labelled(spec_for(stub, key_env="STUB_KEY"), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert "sk-wrong" not in str(failure.value)
    assert sum(stub.keys.values()) == 1


def test_an_endpoint_that_does_not_answer_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_MOST_LOST", 1)
    nobody = Stub()
    nobody.url = "http://127.0.0.1:9"
    spec = spec_for(nobody)
    with pytest.raises(KdcError, match="does not answer"):
        labelled(spec, table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))


def test_a_model_that_never_answers_usably_is_told_early(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.faults = {"missing": 1.0}
    with pytest.raises(KdcError, match="no usable answer"):
        labelled(spec_for(stub, tries=1), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert sum(stub.ids.values()) == 5


def test_texts_that_stay_without_an_answer_do_not_end_the_next_run(stub: Stub, tmp_path: Path) -> None:
    stub.table = {**stub.table, **dict.fromkeys(TEXTS[2:], dict.fromkeys(LABELS, 0.9))}  # no probabilities
    source, output = table_of(tmp_path, TEXTS), str(tmp_path / "out.csv")
    for _ in range(2):
        result = labelled(spec_for(stub, tries=1), source, output)
        assert (result.rows, result.unanswered) == (2, len(TEXTS) - 2)


def test_a_file_that_kdc_label_did_not_write_stays(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(InputError, match="there already"):
        labelled(spec_for(stub), table_of(tmp_path, TEXTS), str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_another_question_is_asked_anew(stub: Stub, tmp_path: Path) -> None:
    """Would catch an answer that is kept by its text alone."""
    source, output = table_of(tmp_path, TEXTS[:4]), str(tmp_path / "out.csv")
    labelled(spec_for(stub), source, output)
    other = CHOICE | {"instructions": "What else is wanted?"}
    assert labelled(spec_for(stub, question=other), source, output).requests == 8


@pytest.mark.parametrize(
    ("before", "after", "place", "word"),
    [
        ('kind = "chat"', 'kind = "chart"', "kind =", "source.kind"),
        ('type = "choice"', 'type = "choose"', "[question]", "question"),
        ("input = 0.25", "input = -1", "input =", "prices.input"),
        ("[prices]", "tokens = 3\n[prices]", "tokens =", "source.tokens"),
    ],
)
def test_a_wrong_spec_names_the_line(before: str, after: str, place: str, word: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    write_template(spec)
    assert read_spec(spec).labels == ("refund", "delivery", "other")
    spec.write_text(spec.read_text().replace(before, after))
    (line,) = [n for n, text in enumerate(spec.read_text().splitlines(), 1) if text.startswith(place)]
    with pytest.raises(InputError, match=rf"line {line}: {word}"):
        read_spec(spec)


def test_pace_halves_once_for_all_calls_that_were_under_way() -> None:
    pace = asking.Pace(64)
    began = time.monotonic()
    for _ in range(500):
        pace.went_well()
    grown = pace._allowed
    for _ in range(20):
        pace.trouble(began)
    assert 16 < grown <= 64
    assert pace._allowed == grown / 2
