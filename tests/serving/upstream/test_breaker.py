"""The circuit breaker, by a clock that the test moves."""

from kdc.serving.upstream.breaker import Breaker


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.wait_s(now) == 0
        breaker.ended(failed=True, now=now)


def test_it_opens_after_five_failures_in_a_row() -> None:
    breaker = Breaker()
    fail(breaker, 0, 4)
    breaker.ended(failed=False, now=0)
    fail(breaker, 0, 5)
    assert breaker.wait_s(0.25) == 0.75


def test_one_request_tries_whether_it_is_over() -> None:
    breaker = Breaker()
    fail(breaker, 0, 5)
    assert breaker.wait_s(1.25) == 0
    assert breaker.wait_s(1.25) == 1  # another one, meanwhile
    breaker.ended(failed=False, now=1.5)
    assert [breaker.wait_s(1.5), breaker.wait_s(1.5)] == [0, 0]


def test_it_stays_open_twice_as_long_after_each_failed_trial_up_to_half_a_minute() -> None:
    breaker, now, waits = Breaker(), 0.0, []
    fail(breaker, now, 5)
    for _ in range(7):
        waits.append(breaker.wait_s(now))
        now += waits[-1]
        fail(breaker, now)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_a_trial_whose_client_left_gives_its_turn_to_the_next() -> None:
    breaker = Breaker()
    fail(breaker, 0, 5)
    assert breaker.wait_s(1) == 0
    breaker.ended(failed=None, now=1)
    assert breaker.wait_s(1) == 0


def test_failures_of_requests_from_before_do_not_lengthen_the_wait() -> None:
    breaker = Breaker()
    fail(breaker, 0, 5)
    for _ in range(5):
        breaker.ended(failed=True, now=0.5)
    assert breaker.wait_s(0.5) == 0.5


def test_it_closes_as_if_nothing_had_been() -> None:
    breaker = Breaker()
    fail(breaker, 0, 5)
    fail(breaker, 1)
    assert breaker.wait_s(3) == 0
    breaker.ended(failed=False, now=3)
    fail(breaker, 3, 5)
    assert breaker.wait_s(3) == 1
