"""Protobuf's wire format, as far as messages of others are looked at before a library reads them."""

import mmap

_MOST_BYTES = 10  # of a number


def varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """A number that begins at an offset, and the offset after it.

    Raises:
        IndexError: the data end within it, or it has more bytes than any number.
    """
    value = 0
    for index in range(_MOST_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise IndexError(at)
