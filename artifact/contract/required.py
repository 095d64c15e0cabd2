"""What a contract asks of decisions: a share of evaluation rows, such as `spam:precision>=0.95` or `accuracy>=0.98`."""

from pydantic import Field

from kdc.artifact.contract.rates import Bound, Rate, parse_bound
from kdc.artifact.contract.terms import Evidence, Verdict
from kdc.common.frozen import Frozen


class Found(Frozen):
    """A share that a contract asks for, as it was counted on labelled rows, by the decisions of the artifact."""

    requirement: str  # as the contract has it
    # Its interval is Clopper's and Pearson's, with the contract's confidence at the end that shows that the share is
    # kept; at the other end all shares of the contract have the error of one together.
    rate: Rate
    look: int = Field(1, ge=1)  # see `kdc.artifact.contract.terms.Quality`

    @property
    def asked(self) -> Bound:
        """The requirement."""
        bound = parse_bound(self.requirement)
        assert bound is not None  # a contract cannot be made otherwise
        return bound


def judge_found(found: Found, evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict on one share, and what is wrong in one sentence ("" where it is kept)."""
    asked, rate = found.asked, found.rate
    if not rate.of:
        return "not shown", f"{found.requirement}: there is no such evaluation row, of which it would be a share"
    low, high = rate.low, rate.high
    if evidence == "point":
        low = high = rate.hits / rate.of
    worst, best = (high, low) if asked.is_most else (low, high)
    sign = -1 if asked.is_most else 1
    counted = f"{found.requirement}: {rate.text} % of {rate.of} evaluation rows"
    if sign * worst >= sign * asked.value:
        return "pass", ""
    if sign * best >= sign * asked.value:
        return "not shown", f"{counted}, too few to say"
    return "fail", counted
