"""Which callers' keys the upstream accepted."""

import pickle

import pytest

from kdc.serving.upstream import client
from kdc.serving.upstream.client import Keys

KEY = "Bearer S3CRET"


def test_a_key_counts_for_an_hour_after_it_was_accepted() -> None:
    keys = Keys()
    assert not keys.is_accepted(KEY, 0)
    keys.heard(KEY, 200, 0)
    assert keys.is_accepted(KEY, 3599)
    assert not keys.is_accepted(KEY, 3600)
    assert not keys.is_accepted("Bearer other", 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_counts_no_more(status: int) -> None:
    keys = Keys()
    keys.heard(KEY, 200, 0)
    keys.heard(KEY, status, 1)
    assert not keys.is_accepted(KEY, 1)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500])
def test_other_failures_say_nothing_about_the_key(status: int) -> None:
    keys = Keys()
    keys.heard(KEY, status, 0)
    assert not keys.is_accepted(KEY, 0)
    keys.heard(KEY, 200, 0)
    keys.heard(KEY, status, 1)
    assert keys.is_accepted(KEY, 1)


def test_no_key_is_held_and_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_KEYS", 2)
    keys = Keys()
    for number, key in enumerate((KEY, "b", KEY, "c")):
        keys.heard(key, 200, number)
    assert [keys.is_accepted(key, 4) for key in (KEY, "b", "c")] == [True, False, True]
    assert b"S3CRET" not in pickle.dumps(keys.__dict__)
