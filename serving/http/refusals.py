"""Errors of rows that the batcher does not take: the queue is full, the request too large, the service closing."""

from __future__ import annotations

from kdc.common.errors import KdcError


class Overloaded(KdcError):
    """The queue is full.

    Args:
        queued: tokens that wait.
        most: tokens that may wait now.
        retry_after: seconds until the queue will probably have room, at least 1.
    """

    def __init__(self, queued: int, most: int, retry_after: int) -> None:
        super().__init__(
            "the service is overloaded",
            given=f"{queued} of {most} tokens are queued",
            remedy=f"try again in {retry_after} s",
        )
        self.retry_after = retry_after


class TooLarge(KdcError):
    """A request has more tokens than even an empty queue takes."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(
            "the request has too many tokens", given=f"{tokens}; at most {most}", remedy="send fewer texts a request"
        )


class Closed(KdcError):
    """The batcher takes no more rows."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down", remedy="send the request to another instance")
