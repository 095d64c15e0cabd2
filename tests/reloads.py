"""Helpers of tests of reloads: artifacts behind links, and which of them answers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bag_models import expected_logits


def link(target: Path, at: Path) -> Path:
    """Point `at` to `target` in one step, as `kdc compress` does."""
    temporary = at.with_suffix(".new")
    temporary.symlink_to(target)
    temporary.replace(at)
    return at


def raw_scores(url: str, text: str = "w1", path: str = "/predict") -> list[float]:
    reply = httpx2.post(url + path, json={"inputs": text, "raw_scores": True}, timeout=30)
    assert reply.status_code == 200, reply.text
    return sorted(entry["score"] for entry in reply.json())


def expected_scores(scale: float, text: str = "w1") -> Any:
    return pytest.approx(sorted(expected_logits(text, scale=scale * 1.01).tolist()), abs=1e-5)


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
