"""The queue: whose turn it is, which rows share a pass, and what is counted of those that wait."""

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from kdc.serving.http.queue import Queue, Request, Row

NUMBERS = itertools.count()


@dataclass
class Waiting:
    """A row of `Plain`."""

    request: int
    arrival: int
    length: int
    turn: float


@dataclass
class Plain:
    """What the queue is to do, written without any thought of speed: all rows are looked at for every decision."""

    rows: list[Waiting] = field(default_factory=list)
    clock: float = 0.0
    next_turn: dict[int, float] = field(default_factory=dict)
    arrivals: int = 0

    def add(self, request: int, length: int) -> None:
        turn = max(self.clock, self.next_turn.get(request, 0.0))
        self.next_turn[request] = turn + length
        self.rows.append(Waiting(request, self.arrivals, length, turn))
        self.arrivals += 1

    def take(self, max_rows: int, max_tokens: int, ahead: float) -> list[Waiting]:
        first = min(self.rows, key=lambda row: (row.turn, row.arrival))
        requests, batch = {row.request for row in self.rows}, [first]
        while len(batch) < max_rows:
            low, high = (end(batch, key=lambda row: (row.length, row.arrival)) for end in (min, max))
            below = [row for row in self.rows if (row.length, row.arrival) < (low.length, low.arrival)]
            above = [row for row in self.rows if (row.length, row.arrival) > (high.length, high.arrival)]
            offers = [(self.padding([*batch, row]), 0, row) for row in sorted(below, key=order)[-1:]]
            offers += [(self.padding([*batch, row]), 1, row) for row in sorted(above, key=order)[:1]]
            if not offers:
                break
            padding, _, row = min(offers, key=lambda offer: offer[:2])
            real = sum(each.length for each in [*batch, row])
            if padding + real > max_tokens or padding > real / 4:
                break
            if padding + real > ahead and row.turn > first.turn + ahead:
                break
            if len(requests) <= 4 and not self.is_large(first, ahead) and self.is_large(row, ahead):
                break
            batch.append(row)
        self.rows = [row for row in self.rows if row not in batch]
        self.clock = max(first.turn, self.clock + sum(row.length for row in batch) / len(requests))
        return sorted(batch, key=order)

    def is_large(self, one: Waiting, ahead: float) -> bool:
        return sum(row.length for row in self.rows if row.request == one.request) > max(ahead, one.length)

    @staticmethod
    def padding(rows: list[Waiting]) -> int:
        longest = max(row.length for row in rows)
        return sum(longest - row.length for row in rows)


def order(row: Waiting) -> tuple[int, int]:
    return row.length, row.arrival


@pytest.mark.parametrize("seed", range(12))
def test_it_takes_what_the_plain_form_takes(seed: int) -> None:
    """Would catch any change of who comes next, of what shares a pass, and of the counts beside it."""
    random = np.random.default_rng(seed)
    queue, plain = Queue(), Plain()
    requests: dict[int, Request] = {}
    longest, ahead = int(random.choice([4, 20, 200])), float(random.choice([40, 100, math.inf]))
    for step in range(400):
        if len(plain.rows) == 0 or (len(plain.rows) < 150 and random.random() < 0.5):
            name = step if random.random() < 0.6 or not requests else int(random.choice(list(requests)))
            request = requests.setdefault(name, Request(None, 0, []))  # type: ignore[arg-type]
            for length in random.integers(1, longest + 1, size=int(random.choice([1, 1, 2, 30]))).tolist():
                encoding: Any = (name, plain.arrivals)
                queue.add(Row(length, (length, plain.arrivals), encoding, request, 0, 0.0))
                plain.add(name, length)
        elif random.random() < 0.15:
            gone = plain.rows[int(random.integers(len(plain.rows)))]
            plain.rows.remove(gone)
            (row,) = [row for row in queue._by_length if row.key[1] == gone.arrival]
            queue.remove(row)
            queue.remove(row)  # the second time it has left already
        else:
            limits = {"max_rows": int(random.choice([1, 3, 32])), "max_tokens": int(random.choice([1, 60, 256]))}
            expected = plain.take(ahead=ahead, **limits)
            batch = queue.take(ahead=ahead, **limits)
            taken: list[Any] = [row.encoding for row in batch]
            assert taken == [(row.request, row.arrival) for row in expected]
            assert all(row.taken for row in batch)
        assert len(queue) == len(plain.rows)
        assert queue.tokens == sum(row.length for row in plain.rows)
        assert queue.requests == len({row.request for row in plain.rows})
        of_each = [sum(row.length for row in plain.rows if row.request == name) for name in requests]
        assert queue.before(50) == sum(min(tokens, 50) for tokens in of_each)
        assert len(queue._by_turn) <= 2 * len(queue) + 64


def asked(queue: Queue, name: int, lengths: Sequence[int]) -> None:
    """Add a request's rows to a queue."""
    request = Request(None, len(lengths), [])  # type: ignore[arg-type]
    for place, length in enumerate(lengths):
        number = next(NUMBERS)
        encoding: Any = [name] * length
        queue.add(Row(length, (length, number), encoding, request, place, 0.0))


def taken(queue: Queue) -> tuple[int, int]:
    """Take one row: the name of its request, and its tokens."""
    (one,) = queue.take(max_rows=1, max_tokens=100)
    encoding: Any = one.encoding
    return encoding[0], one.length


def test_a_request_does_not_wait_for_all_rows_of_one_before_it() -> None:
    # A client with a thousand rows made single rows of others wait half a second.
    queue = Queue()
    asked(queue, 1, [10] * 100)
    for _ in range(5):
        taken(queue)
    asked(queue, 2, [70])
    assert 2 in [taken(queue)[0] for _ in range(2)]


def test_new_requests_without_end_do_not_hold_back_one_of_many_rows() -> None:
    # The bug to catch: a clock that stands still while rows with the turn of the moment come one after the other.
    queue, served = Queue(), {1: 0, 2: 0}
    asked(queue, 1, [10] * 1000)
    asked(queue, 2, [17])
    for _ in range(300):
        name, tokens = taken(queue)
        served[name] += tokens
        if name == 2:
            asked(queue, 2, [17])  # a client that asks again at once
    assert served[1] > 0.8 * served[2]


def test_rows_that_left_are_forgotten() -> None:
    queue = Queue()
    asked(queue, 1, [10] * 5)
    for _ in range(50):
        asked(queue, 2, [7] * 100)
        for waiting in [row for row in queue._by_length if row.length == 7]:
            queue.remove(waiting)
    assert (len(queue), queue.tokens, queue.before(1000)) == (5, 50, 50)
    assert len(queue._by_turn) < 200
    assert [taken(queue)[0] for _ in range(5)] == [1] * 5


def test_what_comes_before_is_counted_while_lanes_take_rows() -> None:
    queue, over = Queue(), threading.Event()

    def lanes() -> None:
        while not over.is_set():
            for name in range(50):
                asked(queue, name, [3])
            while len(queue):
                taken(queue)

    lane = threading.Thread(target=lanes)
    lane.start()
    try:
        for _ in range(20_000):
            queue.before(10)
    finally:
        over.set()
        lane.join()


def test_a_pass_is_short_unless_the_turn_of_all_its_rows_has_come() -> None:
    queue = Queue()
    asked(queue, 1, [10] * 100)
    assert len(queue.take(max_rows=100, max_tokens=200, ahead=40)) == 5  # those with the turns 0 to 40
    for name in range(2, 40):
        asked(queue, name, [20])
    assert sorted(len(queue.take(max_rows=100, max_tokens=200, ahead=40)) for _ in range(3)) == [5, 10, 10]


def test_a_small_request_waits_for_no_row_of_a_large_one_in_its_pass() -> None:
    """Would catch a single row whose pass takes as long as those of a request of a thousand; and rows of one request
    each, however long, that no longer share a pass."""
    queue = Queue()
    asked(queue, 1, [10] * 100)
    asked(queue, 2, [10])
    first, second = (queue.take(max_rows=100, max_tokens=200, ahead=40) for _ in range(2))
    assert (len(first), [row.encoding for row in second]) == (5, [second[0].encoding])
    assert second[0].request.waiting == 0
    singles = Queue()
    for name, length in enumerate((38, 45, 39, 44)):
        asked(singles, name, [length])
    assert len(singles.take(max_rows=100, max_tokens=200, ahead=40)) == 4


def test_the_rows_of_a_crowd_share_passes_beside_a_large_request() -> None:
    """Would catch passes of one row each, since rows of the large request lie between all others in length."""
    random, queue = np.random.default_rng(0), Queue()
    asked(queue, 0, random.integers(10, 60, size=1000).tolist())
    for name in range(1, 31):
        asked(queue, name, [int(random.integers(10, 60))])
    passes = [queue.take(max_rows=100, max_tokens=256, ahead=256) for _ in range(10)]
    assert np.mean(list(map(len, passes))) > 5


def test_requests_that_wait_together_get_like_shares() -> None:
    random, queue = np.random.default_rng(5), Queue()
    lengths = {name: random.integers(1, 60, size=count).tolist() for name, count in ((1, 900), (2, 300), (3, 300))}
    for name, each in lengths.items():
        asked(queue, name, each)
    served = dict.fromkeys(lengths, 0)
    while min(sum(each) - served[name] for name, each in lengths.items()) > 200:  # all of them wait
        name, tokens = taken(queue)
        served[name] += tokens
    assert max(served.values()) - min(served.values()) <= 2 * 60
    assert queue.tokens == sum(map(sum, lengths.values())) - sum(served.values())
