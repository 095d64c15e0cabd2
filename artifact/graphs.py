"""Tells whether an ONNX file is whole by itself, without the `onnx` package, which the serving install lacks.

A tensor of ONNX may keep its numbers in another file ("external data"). No manifest lists this file: its content could
change under every hash. The reader walks protobuf's encoding and skips the weights. It is stricter than protobuf: it
refuses fields that no exporter writes and a reader may skip, such as groups.
"""

import mmap

from kdc.common.protobuf import varint

# Messages of onnx.proto by name: the fields that lead to a tensor, and the kind of message in each.
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
_OPERATOR = 4  # a node's field `op_type`
_ELSEWHERE = b"EPContext"  # an operator of a GPU's providers, whose program may be in another file
_LOCATION = 14  # a tensor's field `data_location`; 0 is the file itself
_MOST_FIELDS = 3_000_000  # thirty times those of a large graph; more are read for seconds, and refused
_MOST_KEY = 0xFFFFFFFF  # of a field's number and wire type; of a larger one protobuf reads the lower bits
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # protobuf's wire types


def is_self_contained(data: bytes | mmap.mmap) -> bool:
    """Whether an ONNX file holds the numbers of all its tensors. False for a damaged file, for no ONNX file, and for
    one with millions of fields, which would take too long."""
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
            else:  # the marks of a group: ONNX has none, and what is between them is skipped by its readers
                return False
        if at != end:  # a field goes on past the end of its message
            return False
    return True
