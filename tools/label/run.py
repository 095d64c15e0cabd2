"""`kdc label`: reads a table, asks the endpoint for each text's label, and writes OUT with what is known."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kdc.artifact.question import canonical
from kdc.common.errors import InputError, KdcError
from kdc.common.files import whole_file, write_whole
from kdc.common.places import file_system, is_local, lock
from kdc.common.progress import Meter
from kdc.common.records import Dialect
from kdc.tools.label.asking import Asking, LimitReached
from kdc.tools.label.batch import Batch, Pending, batch_of, read_results
from kdc.tools.label.chat import Chat
from kdc.tools.label.decisions import Decisions, SystemOne
from kdc.tools.label.ledger import Ledger, ledger_of, text_hash
from kdc.tools.label.results import BatchWritten, Estimate, Labelled
from kdc.tools.label.source import Answer, Source, Unusable
from kdc.tools.label.spec import Spec
from kdc.tools.label.table import Row, Table, describe

SOURCES: dict[str, type[Source]] = {"systemone": SystemOne, "decisions": Decisions, "chat": Chat}
_DRY_ROWS = 20
_PROBES = 5  # until one is answered
_MOST_REASONS = 10_000  # reasons that are kept
_MOST_IN_VAIN = 50  # texts before the run ends, if none got an answer


def label_table(
    spec: Spec,
    source: str,
    output: str,
    *,
    rows: int | None = None,
    max_requests: int | None = None,
    max_usd: float | None = None,
    on_error: str = "stop",
    delimiter: str | None = None,
    encoding: str | None = None,
    dry_run: bool = False,
    results: Path | None = None,
) -> Labelled | Estimate | BatchWritten:
    """Label a table. The same command again resumes.

    Args:
        max_requests, max_usd: limits of all runs with this ledger together.
        dry_run: ask a few texts, and estimate the rest; OUT is not written.

    Raises:
        InputError: an option, a file or a row cannot be used.
        KdcError: the endpoint refuses all calls, or does not answer.
    """
    limits = {"max_requests": max_requests, "max_usd": max_usd}
    if spec.source.batch and (dry_run or any(limit is not None for limit in limits.values())):
        what = "a batch is not sent by kdc, so it has no limits and no dry run"
        raise InputError(what, given="batch = true", remedy="--rows bounds it")
    if results is not None and not spec.source.batch:
        raise InputError("results are those of a batch", given=f"--results {results}", remedy="batch = true in SPEC")
    system, path = file_system(output)
    if not is_local(system):
        raise InputError("the ledger lies beside OUT, so OUT is a local file", given=output, remedy="a path")
    ledger_path = ledger_of(path)
    if Path(path).exists() and not ledger_path.exists():
        raise InputError("the output is there already", given=output, remedy="another name")
    with lock(output), ExitStack() as stack:
        table = Table(spec, source, output, on_error=on_error, dialect=Dialect(delimiter, encoding))
        ledger = Ledger(ledger_path, endpoint=spec.source.url, model=spec.source.model, spec=fingerprint(spec))
        stack.callback(ledger.close)
        meter = stack.enter_context(Meter())
        if ledger.unknown:
            meter.say(
                f"{ledger.unknown} calls were under way when an earlier run ended; they may have been paid, at most "
                f"{ledger.unknown_usd:.4f} USD"
            )
        job = Job(table, ledger, meter, table.sample(min(_DRY_ROWS, rows or _DRY_ROWS) if dry_run else rows))
        if not spec.source.batch:
            asyncio.run(job.ask_all(**limits))
            return job.estimate(rows) if dry_run else job.written()
        if results is not None:
            meter.say("{:,} replies, {:,} failed calls".format(*read_results(results, spec, ledger)))
        calls = asyncio.run(job.write_batch())
        return BatchWritten(file=str(batch_of(path)), calls=calls) if calls else job.written()


def fingerprint(spec: Spec) -> bytes:
    """Hash of what decides an answer: not the price, nor how calls are sent."""
    how_sent = {"key_env", "timeout_s", "batch", "concurrency", "tries", "most_output_tokens"}
    source = spec.source.model_dump(exclude=how_sent)
    asked = [source, spec.question.model_dump(), [example.model_dump() for example in spec.examples]]
    return hashlib.sha256(canonical(json.loads(json.dumps(asked))).encode()).digest()


class Job:
    def __init__(self, table: Table, ledger: Ledger, meter: Meter, wanted: Callable[[str], bool]) -> None:
        self.table, self.ledger, self.meter, self.wanted = table, ledger, meter, wanted
        self.spec = table.spec
        self.reasons: dict[str, str] = {}  # why texts have no answer
        self.limit: str | None = None
        self._asked, self._answered = 0, ledger.answered  # texts of this run, of all runs

    async def ask_all(self, **limits: Any) -> None:
        """Ask for missing answers until a limit is reached. Raises KdcError if the endpoint refuses all calls or gives
        no usable answer.
        """
        asking, source = Asking(self.spec, self.ledger, **limits), SOURCES[self.spec.source.kind](self.spec)
        seen: set[bytes] = set()
        rows, began = 0, time.monotonic()
        try:
            self.meter.start("rows", self.table.bytes or None)
            for part in self.table.read():
                rows += len(part)
                texts = self._to_ask(part, seen)
                if texts and not self._asked:
                    await self._probe(source, asking, texts[:_PROBES])

                def told(rows: int = rows, done: int = self.table.done) -> None:
                    speed = self._asked / max(time.monotonic() - began, 1e-9)
                    self.meter.update(done, rows, speed, f", {asking.requests:,} calls, {asking.usd:.2f} USD")

                await self._ask_each(source, asking, iter(texts), told)
        except LimitReached as limit:  # of the probe
            self.limit = f"{limit.what}: {limit.given}"
        finally:
            await asking.close()

    async def write_batch(self) -> int:
        """Keep the answers of known replies, and write the missing calls; gives the calls' number."""
        source, seen = SOURCES[self.spec.source.kind](self.spec), set[bytes]()
        path = batch_of(self.table.output)
        with whole_file(path) as stream:
            batch = Batch(self.spec, self.ledger, stream)
            for part in self.table.read():
                for text in self._to_ask(part, seen):
                    try:
                        self.ledger.keep(text, await source.answer(batch, text))
                        self._answered += 1
                    except Pending:
                        continue
                    except Unusable as reason:
                        self._note(text, str(reason))
        if not batch.calls:
            path.unlink()
        return batch.calls

    def _to_ask(self, rows: list[Row], seen: set[bytes]) -> list[str]:
        texts = []
        for row in rows:
            if row.person is not None or (key := text_hash(row.text)) in seen or not self.wanted(row.text):
                continue
            seen.add(key)
            if self.ledger.answer(row.text) is None:
                texts.append(row.text)
        return texts

    async def _probe(self, source: Source, asking: Asking, texts: list[str]) -> None:
        for text in texts:
            try:
                self.meter.say(f"{self.spec.source.model}: probabilities by {await source.probe(asking, text)}")
                return
            except Unusable as reason:
                failed = str(reason)
        if not self._answered:
            remedy = "another model, or another `probabilities` in SPEC"
            raise KdcError("the model gives no usable answer", given=failed, remedy=remedy)

    async def _ask_each(self, source: Source, asking: Asking, texts: Iterator[str], told: Callable[[], None]) -> None:
        async def work() -> None:
            for text in texts:
                if self.limit is not None:
                    return
                try:
                    self.ledger.keep(text, await source.answer(asking, text))
                    self._answered += 1
                except LimitReached as limit:  # the other workers finish their calls
                    self.limit = f"{limit.what}: {limit.given}"
                    return
                except Unusable as reason:
                    self._note(text, str(reason))
                self._asked += 1
                told()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.spec.source.concurrency):
                    group.create_task(work())
        except* KdcError as failures:
            raise failures.exceptions[0] from None

    def _note(self, text: str, reason: str) -> None:
        if len(self.reasons) < _MOST_REASONS:
            self.reasons[text] = reason
        if not self._answered and len(self.reasons) >= _MOST_IN_VAIN:
            what = f"the first {_MOST_IN_VAIN} texts got no usable answer"
            raise KdcError(what, given=reason, remedy="correct SPEC; answers outside the list are never guessed")

    def estimate(self, rows: int | None) -> Estimate:
        """The job at the average cost of texts in the ledger."""
        spent, answered = self.ledger.spent(), max(1, self.ledger.answered)
        texts = len({text_hash(row.text) for part in self.table.read() for row in part if row.person is None})
        texts = min(texts, rows or texts)
        share, (p50_ms, _) = texts / answered, self.ledger.latency_ms() or (0.0, 0.0)
        return Estimate(
            sample=self.ledger.answered,
            texts=texts,
            unanswered=len(self.reasons),
            requests=spent.requests * share,
            usd=spent.usd * share,
            hours=spent.requests * share * p50_ms / 3.6e6 / self.spec.source.concurrency,
        )

    def written(self) -> Labelled:
        """Write OUT, its description, and the texts without an answer. Raises KdcError if no text has one."""
        output, ways, lost = self.table.output, Counter[str](), list[dict[str, Any]]()
        asked: set[bytes] = set()

        def find(row: Row) -> Answer | None:
            if row.person is not None:
                ways["people"] += 1
                return row.person
            if not self.wanted(row.text):
                return None
            answer, key = self.ledger.answer(row.text), text_hash(row.text)
            if key not in asked:
                asked.add(key)
                if answer is not None:
                    ways[answer.how] += 1
                elif row.text in self.reasons:
                    lost.append({"file": row.file, "line": row.line, "reason": self.reasons[row.text]})
            return answer

        rows = self.table.write(find)
        spent, latency = self.ledger.spent(), self.ledger.latency_ms() or (None, None)
        people = ways.pop("people", 0)
        labelled = Labelled(
            output=output,
            rows=rows,
            people=people,
            texts=len(asked),
            unanswered=len(asked) - ways.total(),
            how=dict(ways),
            model=self.spec.source.model,
            resolved=self.ledger.models(),
            p50_ms=latency[0],
            p95_ms=latency[1],
            limit=self.limit,
            maybe_paid=self.ledger.unknown,
            **vars(spent),
        )
        describe(output, self.spec, labelled)
        beside = Path(f"{output}.unanswered.jsonl")
        if lost:
            write_whole(beside, "".join(f"{json.dumps(row)}\n" for row in lost))
        else:
            beside.unlink(missing_ok=True)
        if not rows:
            remedy = f"the reasons are in {beside}" if lost else "a higher limit; the same command resumes"
            raise KdcError("no text has an answer", given=self.limit or output, remedy=remedy)
        return labelled
