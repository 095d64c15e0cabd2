"""A circuit breaker (Nygard, Release It!, 2007): a dead upstream costs no request its time-out."""

from dataclasses import dataclass

_FAILURES = 5  # in a row, until it opens
_FIRST_S, _LONGEST_S = 1.0, 30.0  # seconds open; doubled by each failed trial


@dataclass
class Breaker:
    """Times are seconds of a monotonic clock."""

    failures: int = 0  # in a row
    opened_s: float = 0.0  # for how long; 0: closed
    until: float = 0.0
    trying: bool = False  # one request tries now

    def wait_s(self, now: float) -> float:
        """Seconds until another request may try; 0: the caller's may go, and must call `ended`."""
        if not self.opened_s:
            return 0.0
        if now < self.until or self.trying:
            return _FIRST_S if self.trying else self.until - now
        self.trying = True
        return 0.0

    def ended(self, *, failed: bool | None, now: float) -> None:
        """`failed` None: the end says nothing, as when the client left."""
        if failed is None:
            self.trying = False
        elif not failed:
            self.failures, self.opened_s, self.trying = 0, 0.0, False
        else:
            self.failures += 1
            if self.trying or (self.failures >= _FAILURES and not self.opened_s):
                self.opened_s = min(self.opened_s * 2 or _FIRST_S, _LONGEST_S)
                self.until, self.trying = now + self.opened_s, False
