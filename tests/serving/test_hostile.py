"""The short form of benchmarks/hostile.py: whatever a client without the token sends, memory stays and others are
answered."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import grpc
import psutil
import pytest
from bag_models import INFO, SINGLE, make_word_pieces, many_labels, write_artifact
from live import ROOT, free_port, served
from tritonclient.grpc import service_pb2 as messages

sys.path.insert(0, str(ROOT))

from benchmarks.hostile import ATTACKS, beside
from benchmarks.serving.attacks import KEY, OVERLOADS, WITH_THE_TOKEN, Target
from benchmarks.serving.grpc_attacks import GRPC_ATTACKS, HEALTH
from benchmarks.serving.process import Running
from benchmarks.serving.servers import Server
from kdc.serving.http.accepting import most_probes

_SECONDS = 1.0
_CONNECTIONS = 400  # more than other attacks have, and so few that this process has files for them
_SLOWER = (
    "idle",
    "held",
    "begun",
    "unfinished",
    "slow-readers",
)  # take more than a second to have all places, or to leave enough unread
# What no unit test shows. The others are for the slow tier: of most test_protocol.py shows in no time what bounds them.
_QUICK = ("slow-readers", "nested-json", "small-chunks", "half-bodies", "held", "churn", "slow-probes", "grpc-unread")
_WITHOUT = sorted(set(ATTACKS) - set(WITH_THE_TOKEN))
_SERVER = Server("kdc", lambda port: [], "/health", None)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, int, int]]:
    grpc_port, admin_port = free_port(), free_port()
    # Labels so long that a few rows have a large reply.
    info = SINGLE.model_copy(update={"labels": tuple(name * 24_000 for name in "abc")})
    artifact = write_artifact(tmp_path_factory.mktemp("hostile") / "artifact", info)
    with _served(artifact, "--grpc-address", f"127.0.0.1:{grpc_port}", KDC_ADMIN_PORT=str(admin_port)) as up:
        yield up, grpc_port, admin_port


@contextlib.contextmanager
def _served(artifact: Path, *options: str, **more: str) -> Iterator[Running]:
    settings = {"KDC_API_KEY_ENV": "HOSTILE_KEY", "HOSTILE_KEY": KEY, "KDC_MAX_CONNECTIONS": str(_CONNECTIONS)} | more
    with served(artifact.parent, f"mood={artifact}", "--drain-delay", "0", *options, **settings) as process:
        workers = [
            each for each in psutil.Process(process.popen.pid).children() if "worker" in " ".join(each.cmdline())
        ]
        yield Running(_SERVER, int(process.url.rpartition(":")[2]), 0.0, workers[0])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in _QUICK)) for name in _WITHOUT]
)
def test_memory_stays_and_others_are_answered(service: tuple[Running, int, int], name: str) -> None:
    if name == "probe-flood" and most_probes() < 300:
        pytest.skip("the attack has more connections than the port for probes has places: ulimit -n 8192")
    up, grpc_port, admin_port = service
    until = time.monotonic() + (_SECONDS if name not in _SLOWER else 2 * _SECONDS)
    target = Target(up.port, False, until, admin_port, grpc_port, _CONNECTIONS)
    seen = asyncio.run(beside(ATTACKS[name], target, up))
    assert seen.failed == []
    assert seen.answered > 0
    assert max(seen.apart) < 10.0  # that is one without an answer
    # New connections to the service itself wait for half a second, or are refused, while others take all places.
    assert (median if name in ("begun", "unfinished", *OVERLOADS) else max)(seen.probes) < 10.0
    assert max(seen.memory_mb) - seen.memory_mb[0] < 64
    if name in GRPC_ATTACKS:
        _answers_by_grpc(grpc_port)


def test_requests_of_many_labels_take_little_memory(tmp_path: Path) -> None:
    with _served(write_artifact(tmp_path / "artifact", many_labels(5000), outputs=5000)) as up:
        target = Target(up.port, is_pair=False, until=time.monotonic() + 2 * _SECONDS)
        seen = asyncio.run(beside(ATTACKS["many-labels"], target, up))
    assert seen.failed == []
    assert len(target.done) > 0  # those that ask for the best five
    assert max(seen.memory_mb) - seen.memory_mb[0] < 500


@pytest.mark.slow  # test_tokenizer_pool.py has the turns
def test_long_words_leave_others_their_turns(tmp_path: Path) -> None:
    info = INFO.model_copy(update={"max_length": 512})  # so each text is read whole
    with _served(
        write_artifact(tmp_path / "artifact", info=info, tokenizer=make_word_pieces(tmp_path / "tokenizer.json"))
    ) as up:
        target = Target(up.port, is_pair=False, until=time.monotonic() + 4 * _SECONDS, others="a row of words " * 200)
        seen = asyncio.run(beside(ATTACKS["long-words-of-100"], target, up))
    assert seen.failed == []
    assert seen.answered >= 8


def _answers_by_grpc(port: int) -> None:
    """After an attack on that port others are answered there: a probe, and a request with the token."""
    given = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"w1"]}}
    asked = messages.ModelInferRequest(model_name="mood", inputs=[given]).SerializeToString()
    infer = "/inference.GRPCInferenceService/ModelInfer"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ready = {"wait_for_ready": True, "timeout": 20}
        assert channel.unary_unary(HEALTH)(b"", **ready) == b"\x08\x01"  # SERVING
        assert channel.unary_unary(infer)(asked, metadata=(("authorization", f"Bearer {KEY}"),), **ready)
