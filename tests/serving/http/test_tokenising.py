"""Long requests are tokenised in pieces that take turns, and give the tokens and the messages of the whole."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from bag_models import write_artifact

from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http.tokenising import Tokenising


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_artifact(tmp_path_factory.mktemp("artifact")), device="cpu", threads=1)


@pytest.mark.parametrize("lengths", [[1], [3, 40_000, 1], [30_000] * 5, [1] * 1024, [60_000, 60_000, 2]])
def test_pieces_give_the_tokens_of_the_whole(engine: Engine, lengths: list[int]) -> None:
    rows = [" ".join(f"w{(n + place) % 20}" for n in range(length)) for place, length in enumerate(lengths)]
    pieces = asyncio.run(Tokenising(engine).encode(rows, None))
    assert [row.ids for row in pieces] == [row.ids for row in engine.encode(rows)]


def test_a_message_names_the_row_of_the_request_and_not_of_its_piece(engine: Engine) -> None:
    with pytest.raises(InputError, match="row 2"):
        asyncio.run(Tokenising(engine).encode(["w1 " * 40_000, "w2 " * 40_000, ("a", "pair")], None))


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
    tokenising = Tokenising(engine)

    async def both() -> None:
        long = asyncio.create_task(tokenising.encode(["a" * 60_000] * 30, None))
        await asyncio.sleep(0.05)
        await tokenising.encode(["b" * 3000], None)
        engine.seen.append("answered")
        await long

    asyncio.run(both())
    assert engine.seen.index("answered") < 20
    assert engine.seen.count("a") == 30
    assert tokenising.least_tokens(["a" * 60_000, "b"]) == 8 + 1


def test_only_a_small_request_keeps_other_threads_waiting() -> None:
    """Would catch an event loop that waits for the words of large requests to be looked up."""
    engine: Any = Slow()
    for rows in (["a"], ["b" * 3000], ["c" * 60_000] * 2):
        asyncio.run(Tokenising(engine).encode(rows, None))
    assert engine.beside == [False, True, True, True]
