"""The end of a service, seen from a client that connects at the last moment."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdc.serving.http import drain, runtime


def test_who_connects_while_the_last_ones_are_taken_is_refused_and_not_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a turn of the loop between the last connection that is taken and the end of listening. Whoever
    connects in it is accepted by the kernel, and reset with its request unread."""
    (tmp_path / runtime.STOPPING).touch()
    monkeypatch.setattr(runtime, "directory", lambda: tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[str] = []

    async def connects() -> None:
        try:
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.close()
            seen.append("connected")
        except ConnectionRefusedError:
            seen.append("refused")

    monkeypatch.setattr(drain, "take_what_waits", lambda *_: [asyncio.create_task(connects())])
    server: Any = SimpleNamespace(servers=[SimpleNamespace(sockets=[listener], close=lambda: None)])
    asyncio.run(drain.Drain(0, 1, 1)._stop_listening(server))
    listener.close()
    assert seen == ["refused"]
