"""Tells whether an ONNX file holds its weights: no hash covers weights in another file ("external data").

The serving install lacks the package `onnx`.
"""

import mmap

from kdc.common.protobuf import varint

# Field numbers in onnx.proto that lead to tensors.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_OPERATOR = 4  # a node's `op_type`
_ELSEWHERE = b"EPContext"  # operator with a compiled program, maybe in another file
_LOCATION = 14  # `data_location`; 0 is this file
_MOST_FIELDS = 3_000_000  # thirty times a large graph
_MOST_KEY = 0xFFFFFFFF  # protobuf drops higher bits
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # protobuf's wire types


def is_self_contained(data: bytes | mmap.mmap) -> bool:
    """False also for damaged or other files, and for millions of fields."""
    try:
        return _holds_all(data)
    except IndexError:
        return False


def _holds_all(data: bytes | mmap.mmap) -> bool:
    waiting, fields = [("model", 0, len(data))], 0
    while waiting:
        kind, at, end = waiting.pop()
        while at < end:
            fields += 1
            key, at = varint(data, at)
            number, wire = key >> 3, key & 7
            if fields > _MOST_FIELDS or key > _MOST_KEY or not number:
                return False
            if wire == _VARINT:
                value, at = varint(data, at)
                if kind == "tensor" and number == _LOCATION and value:
                    return False
            elif wire == _BYTES:
                size, at = varint(data, at)
                if kind == "node" and number == _OPERATOR and data[at : at + size] == _ELSEWHERE:
                    return False
                if number in _PARTS[kind]:
                    waiting.append((_PARTS[kind][number], at, at + size))
                at += size
            elif wire in (_EIGHT, _FOUR):
                at += 8 if wire == _EIGHT else 4
            else:  # a group: no exporter writes it
                return False
        if at != end:
            return False
    return True
