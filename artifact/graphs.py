"""Whether an ONNX file is whole by itself, found without the `onnx` package, which the serving install lacks.

A tensor of ONNX may keep its numbers in another file ("external data"). No manifest lists such a file, so that its
content could be changed under every hash. The reader walks protobuf's encoding and skips the weights themselves.
"""

import mmap
from pathlib import Path

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
_LOCATION, _EXTERNAL = 14, 1  # a tensor's field `data_location`, and its value for another file
_MOST_FIELDS = 3_000_000  # thirty times those of a large graph; more are read for seconds, and refused
_MOST_BYTES = 10  # of a number
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # protobuf's wire types


def has_external_data(path: Path) -> bool:
    """Whether a tensor of an ONNX file keeps its numbers in another file; also true of a file with millions of fields,
    which nobody reads to the end. False for what is no ONNX file at all, which ONNX Runtime refuses."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _finds_external(data)
        except IndexError:  # no protobuf
            return False


def _finds_external(data: mmap.mmap) -> bool:
    waiting, fields = [("model", 0, len(data))], 0
    while waiting:
        kind, at, end = waiting.pop()
        while at < end:
            fields += 1
            if fields > _MOST_FIELDS:
                return True
            key, at = _varint(data, at)
            key &= 0xFFFFFFFF  # as the C++ of protobuf reads it
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, at = _varint(data, at)
                if kind == "tensor" and number == _LOCATION and value & 0xFFFFFFFF == _EXTERNAL:
                    return True
            elif wire == _BYTES:
                size, at = _varint(data, at)
                if number in _PARTS[kind]:
                    waiting.append((_PARTS[kind][number], at, min(at + size, end)))
                at += size
            else:  # the marks of a group, which ONNX has none of, are only stepped over
                at += {_EIGHT: 8, _FOUR: 4}.get(wire, 0)
    return False


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of protobuf at a place, and the place after it.

    Raises:
        IndexError: the file ends within it, or it has more bytes than any number.
    """
    value = 0
    for place in range(_MOST_BYTES):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise IndexError(at)
