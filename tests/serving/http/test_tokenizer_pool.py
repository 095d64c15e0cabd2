"""Long requests are tokenised in pieces that take turns, and give the tokens and the messages of the whole."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bag_models import write_artifact

from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http.queue import Overloaded
from kdc.serving.http.tokenizer_pool import TokenizerPool


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_artifact(tmp_path_factory.mktemp("artifact")), device="cpu", threads=1)


async def encode(engine: Any, rows: Sequence[Any]) -> list[Any]:
    with contextlib.closing(TokenizerPool(engine)) as pool:
        return await pool.encode(rows, None)


@pytest.mark.parametrize("lengths", [[1], [3, 40_000, 1], [30_000] * 5, [1] * 1024, [60_000, 60_000, 2]])
def test_pieces_give_the_tokens_of_the_whole(engine: Engine, lengths: list[int]) -> None:
    rows = [" ".join(f"w{(n + place) % 20}" for n in range(length)) for place, length in enumerate(lengths)]
    pieces = asyncio.run(encode(engine, rows))
    assert [row.ids for row in pieces] == [row.ids for row in engine.encode(rows)]


def test_a_clock_that_stands_still_is_no_failure(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdc.serving.http.tokenizer_pool.time.thread_time", lambda: 0.0)
    rows = ["w1 w2 " * 2000] * 300
    pieces = asyncio.run(encode(engine, rows))
    assert [row.ids for row in pieces] == [row.ids for row in engine.encode(rows)]


def test_a_message_names_the_row_of_the_request_and_not_of_its_piece(engine: Engine) -> None:
    with pytest.raises(InputError, match="row 2"):
        asyncio.run(encode(engine, ["w1 " * 40_000, "w2 " * 40_000, ("a", "pair")]))


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of sleep count as seconds of a core."""
    monkeypatch.setattr(
        "kdc.serving.http.tokenizer_pool.time", SimpleNamespace(thread_time=time.perf_counter, monotonic=time.monotonic)
    )


class Slow:
    """An engine that notes what it tokenises, a piece in ten milliseconds."""

    threads = 2
    tokenizer_info = SimpleNamespace(longest=8)

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.beside: list[bool] = []

    def has_cut(self, side: str | None) -> bool:
        return True

    def chars_read(self, rows: Sequence[str]) -> list[int]:
        return list(map(len, rows))

    def encode(self, rows: Sequence[str], **how: Any) -> list[str]:
        time.sleep(0.01)
        self.beside.append(how.get("beside", False))
        self.seen += [row[0] for row in rows]
        return list(rows)


def test_a_request_waits_for_a_piece_of_a_longer_one_and_not_for_all_of_it() -> None:
    engine: Any = Slow()

    async def both() -> None:
        pool = TokenizerPool(engine)
        long = asyncio.create_task(pool.encode(["a" * 60_000] * 30, None))
        await asyncio.sleep(0.05)
        await pool.encode(["b" * 3000], None)
        engine.seen.append("answered")
        await long
        assert pool.least_tokens(["a" * 60_000, "b"]) == 8 + 1
        pool.close()

    asyncio.run(both())
    assert engine.seen.index("answered") < 20
    assert engine.seen.count("a") == 30


def test_the_guess_of_tokens_knows_scripts_without_spaces() -> None:
    """Would catch: Chinese texts that are tokenised, though the queue has no room for a fifth of their tokens."""

    async def guess(row: Any) -> int:
        with contextlib.closing(TokenizerPool(cast("Any", Slow()))) as pool:
            return pool.least_tokens([row])

    assert asyncio.run(guess("好" * 32)) == 1 + 32 * 3 // 16
    assert asyncio.run(guess(("好" * 16, "a" * 16))) == 1 + 64 // 16
    assert asyncio.run(guess("a\ud800" * 8)) == 1 + 1  # refused later, with a message


def test_pieces_follow_each_other_while_the_event_loop_is_busy() -> None:
    """Would catch threads that are idle between two pieces in a storm of requests that are refused."""
    engine: Any = Slow()

    async def busy() -> None:
        with contextlib.closing(TokenizerPool(engine)) as pool:
            asked = asyncio.create_task(pool.encode(["a" * 60_000] * 10, None))
            await asyncio.sleep(0)
            deadline = time.monotonic() + 10
            while len(engine.seen) < 10 and time.monotonic() < deadline:
                time.sleep(0.005)
            assert len(engine.seen) == 10
            assert len(await asked) == 10

    asyncio.run(busy())


@pytest.mark.parametrize("long_rows", [3, 20])
def test_rows_that_take_long_leave_a_thread_to_others(long_rows: int) -> None:
    """Would catch pairs of two texts of 200,000 characters that keep the others waiting for seconds."""
    others, engine = threading.Event(), Slow()
    quick = engine.encode

    def encode(rows: Sequence[str], **how: Any) -> list[str]:
        assert rows[0][0] != "l" or others.wait(10)
        return quick(rows, **how)

    engine.encode = encode  # type: ignore[method-assign]

    async def beside() -> None:
        with contextlib.closing(TokenizerPool(cast("Any", engine))) as pool:
            long = [asyncio.create_task(pool.encode(["l" * 60_000], None)) for _ in range(long_rows)]
            for _ in range(3):
                await pool.encode(["b" * 3000] * 4, None)
            others.set()
            await asyncio.gather(*long)

    asyncio.run(beside())


def test_only_a_small_request_keeps_other_threads_waiting() -> None:
    """Would catch an event loop that waits for the words of large requests, or for the pieces of long words."""
    engine: Any = Slow()
    for rows in (["a b"], [("a " * 40, "b")], ["c" * 33], [("a", "b " + "c" * 33)], ["d" * 3000], ["e" * 60_000] * 2):
        asyncio.run(encode(engine, rows))
    assert engine.beside == [False, False, True, True, True, True, True]


@pytest.mark.usefixtures("asleep")
def test_a_new_request_has_its_turn_before_more_of_a_crowd() -> None:
    engine: Any = Slow()

    async def beside_a_crowd() -> None:
        pool = TokenizerPool(engine)
        crowd = [asyncio.create_task(pool.encode(["a" * 3000] * 20, None)) for _ in range(12)]
        while len(engine.seen) < 30:
            await asyncio.sleep(0.005)
        begun = len(engine.seen)
        await pool.encode(["b" * 3000], None)
        assert engine.seen[begun:].index("b") <= 3  # the piece in work, and what began while this task had no turn
        await asyncio.gather(*crowd)
        pool.close()

    asyncio.run(beside_a_crowd())
    assert engine.seen.count("a") == 240


@pytest.mark.usefixtures("asleep")
def test_a_request_is_refused_if_too_many_seconds_come_before_it() -> None:
    engine: Any = Slow()
    large = ["a" * 3000] * 100  # a second

    async def overload() -> None:
        pool = TokenizerPool(engine, max_queue_seconds=0.1)
        first = asyncio.create_task(pool.encode(large, None))
        while not engine.seen:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)  # its first piece is timed
        with pytest.raises(Overloaded, match="to tokenise") as refused:
            await pool.encode(large, None)
        assert refused.value.retry_after >= 1
        assert len(await pool.encode(large[:2], None)) == 2  # only as many seconds come before it
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        assert len(await pool.encode(large[:20], None)) == 20  # what has left does not count
        pool.close()

    asyncio.run(overload())


def test_clients_that_leave_keep_no_thread_and_no_rows() -> None:
    engine: Any = Slow()

    async def leave() -> None:
        pool = TokenizerPool(engine)
        for wait in (0.0, 0.005, 0.012, 0.02):  # before their turn, or while they are tokenised
            left = [asyncio.create_task(pool.encode(["a" * 3000] * 3, None)) for _ in range(3)]
            await asyncio.sleep(wait)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            assert not pool._turns
        assert len(await asyncio.wait_for(pool.encode(["b" * 3000] * 2, None), 10)) == 2
        pool.close()

    asyncio.run(leave())
