"""Judge an artifact: measure it as this machine loads it, and decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdc.artifact.contract.decision import decide
from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.manifest import Device
from kdc.common import machine
from kdc.pipeline.quality.costs import measure
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text


def load(artifact: Path, contract: Contract, device: Device, *, variant: str | None = None) -> Engine:
    """The artifact as it is judged: the device's own variant, or another; the contract's threads. Hashes are not
    checked."""
    return Engine.load(artifact, variant=variant, device=device, threads=contract.at.threads, verify=False)


def judge(
    engine: Engine, contract: Contract, rows: Sequence[Text], quality: Quality | None, *, compared: bool = True
) -> Judgement:
    """Costs, and the verdict.

    Args:
        engine: see `load`.
        contract: what is asked.
        rows: that are timed, see `kdc.pipeline.quality.costs.rows_to_time`.
        quality: None where it is not judged.
        compared: whether the quality was found now; else it is that of an earlier judgement.
    """
    assert engine.manifest is not None
    size_bytes = engine.manifest.variants[engine.variant].size_bytes  # type: ignore[index]
    costs = measure(engine, rows, contract.at, size_bytes=size_bytes)
    verdict, missed = decide(contract, costs, quality)
    return Judgement(
        contract=contract,
        variant=engine.variant,
        provider=engine.provider,
        cpu=str(machine.cpu()["model"]),
        threads=engine.threads,
        lengths=tuple(len(encoding) for encoding in engine.encode(rows)),
        costs=costs,
        quality=quality,
        compared=compared,
        missed=missed,
        verdict=verdict,
    )
