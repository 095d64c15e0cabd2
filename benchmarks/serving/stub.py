"""A stub of two decision APIs and OpenAI's chat completions, which fails on purpose and counts requests.

Command: `python -m benchmarks.serving.stub --port 9000 [--table answers.json] [--delay 0.1] [--fault 429=0.1 ...]`.
`GET /stub` tells how often it was asked what, and what it charged.

Instead of the answer, a fault gives:

- 429, 500, 503, 422: that status; 429 and 503 have `Retry-After`.
- redirect: 307 to `/elsewhere`.
- reset: a reset before a reply.
- stale: as reset, on a connection that has served before.
- cut: half a body, then a reset.
- json: a body that is no JSON.
- missing: an answer is missing.
- type: an answer has another question's type.
- slow: the answer after `slow_s`.
- large: `large_bytes` more in the answer.
- outside: an answer that is none of the options.
- absurd: impossible probabilities or log-probabilities.
- chunked: no fault, the right answer in small chunks.

With `--chat`, a chat gives:

- logprobs: right log-probabilities if asked for (default).
- logprobs_none, logprobs_missing: null, or no such key.
- logprobs_zero, logprobs_9999: each is 0, or -9999.
- logprobs_alone: the only candidate is the answer.
- no_schema, no_tools, no_temperature, no_logprobs: 400 if response_format, tools, temperature, logprobs is sent.
- think: reasoning in the content, before the answer.
- order_bias=X: X more in the logit of the first option.
- outside=P: with probability P an answer outside the list, until corrected.
- refuse=P: with probability P a refusal.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import uvloop

from benchmarks.serving.stub_chat import chat_behaviour
from benchmarks.serving.stub_connection import FAULTS, Behaviour, Connection, Stub

ROOT = Path(__file__).resolve().parents[2]


async def serve(stub: Stub, port: int, stopped: asyncio.Event, started: threading.Event | None = None) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stub), "127.0.0.1", port, backlog=1024)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if started is not None:
        started.set()
    await stopped.wait()
    server.close()
    for connection in list(stub.connections):
        connection.close()


@contextlib.contextmanager
def in_a_thread(stub: Stub, port: int = 0) -> Iterator[Stub]:
    """The caller may change and read the stub."""
    loop, stopped, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(stub, port, stopped, started),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        loop.close()


def started_process(port: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Returns once the stub listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.stub", "--port", str(port), *arguments], cwd=ROOT
    )
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return process
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the stub did not start on port {port}; exit code {process.poll()}")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--table", type=Path, help="JSON: text -> option -> probability; default: answers by a hash")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds until an answer")
    parser.add_argument("--spread", type=float, default=0.0, help="share of the delay that depends on the request's id")
    parser.add_argument("--slow", type=float, default=10.0, help="seconds more of the fault `slow`")
    parser.add_argument("--retry-after", type=int, help="seconds, of the faults 429 and 503")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=PROBABILITY")
    parser.add_argument("--chat", action="append", default=[], metavar="NAME[=NUMBER]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = {name: float(probability) for name, _, probability in (each.partition("=") for each in options.fault)}
    if unknown := sorted(faults.keys() - set(FAULTS)):
        parser.error(f"no such faults: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    try:
        chat = chat_behaviour(options.chat)
    except ValueError as error:
        parser.error(str(error))
    table = {} if options.table is None else orjson.loads(options.table.read_bytes())
    behaviour = Behaviour(
        options.delay, options.spread, faults, options.slow, retry_after_s=options.retry_after, chat=chat
    )
    stub = Stub(behaviour, table, options.seed)

    async def run() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await serve(stub, options.port, stopped)

    uvloop.run(run())


if __name__ == "__main__":
    main()
