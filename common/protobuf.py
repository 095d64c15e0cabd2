"""Protobuf's wire format."""

import mmap

_MOST_BYTES = 10  # of a number


def varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """The number at an offset, and the offset after it.

    Raises:
        IndexError: the data end early, or the number is too long.
    """
    value = 0
    for index in range(_MOST_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise IndexError(at)
