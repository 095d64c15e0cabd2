"""Imports no HTTP client."""

from dataclasses import dataclass


@dataclass
class UpstreamFailed(Exception):
    """No usable answer."""

    status: int  # for the client: 429, 502, 503 or 504
    message: str
    outcome: str  # in metrics
    retry_after: int | None = None  # seconds

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the error's reply."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def unusable(why: str) -> UpstreamFailed:
    """For a 2xx reply without the wanted answer."""
    return UpstreamFailed(502, f"the upstream's reply {why}", "server_error")


@dataclass(frozen=True)
class Reply:
    """A reply with a status below 500, whole or its beginning."""

    status: int
    headers: dict[str, str]  # for the client
    body: bytes = b""

    @property
    def is_answer(self) -> bool:
        return 200 <= self.status < 300
