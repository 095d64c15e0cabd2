"""A lean HTTP client: it shares cores with what it measures."""

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """Header names are lower case; `seconds` count from sending."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Client:
    """Posts JSON to a local port over reused connections."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> Reply:
        """Raises OSError, EOFError or ValueError if the connection breaks or speaks no HTTP."""
        reader, writer = await self._connection()
        began = time.perf_counter()
        try:
            writer.write(self._head(len(body)) + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            content = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        reply = Reply(int(head[0].split()[1]), headers, content, time.perf_counter() - began)
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return reply

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():  # closed as idle
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()

    def _head(self, length: int) -> bytes:
        return (
            f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()
