from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Standing:
    audits: int = 0
    differing: int = 0
    stopped: str | None = None
    budget: float | None = None
    estimate: float = 0.0
    low: float = 0.0
    high: float = 1.0


class AuditRecord:
    def __init__(self, folder: Path, artifact_sha256: str, budget: float | None) -> None:
        self.standing = Standing(budget=budget)

    def add(self, audits: int, differing: int) -> Standing:
        self.standing = Standing(self.standing.audits + audits, self.standing.differing + differing)
        return self.standing

    def read(self) -> Standing:
        return self.standing

    def resume(self) -> None:
        return None
