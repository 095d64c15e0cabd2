"""The Pareto picture: what cannot be drawn is told."""

import pytest

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract, Costs, Limits
from kdc.pipeline.report.facts import CandidateFacts
from kdc.pipeline.report.plots import pareto
from kdc.pipeline.results.training import StudentCosts


def drawn(limit: float) -> str:
    """One candidate of 2 ms, never trained, and the artifact made from it."""
    costs = Costs(latency_ms=2.0, rows_per_s=500.0, size_mb=18.0)
    contract = Contract(limits=Limits(max_latency_ms=limit))
    judgement = Judgement(
        contract=contract,
        verdict="pass",
        variant="int8",
        provider="CPUExecutionProvider",
        cpu="a CPU",
        threads=2,
        compared=True,
        costs=costs,
        lengths=(8,),
    )
    measured = {"layers:0,1,5": StudentCosts(parameters=1, variants={"int8": costs})}
    candidates = CandidateFacts(measured=measured, kept=tuple(measured), trials=(), chosen="layers:0,1,5")
    return pareto(candidates, judgement, teacher=80.0, artifact=79.0)


@pytest.mark.parametrize(("limit", "told"), [(3.0, False), (1000.0, True)])
def test_a_limit_far_away_is_told_and_does_not_press_the_points_together(limit: float, told: bool) -> None:
    picture = drawn(limit)
    assert (f"the limit is at {limit:g} ms" in picture) is told
    assert "3 layers in int8: 2.00 ms" in picture
