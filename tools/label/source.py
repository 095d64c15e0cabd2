"""What a kind of model endpoint does: it makes calls from a text, and an answer from their replies."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast

from kdc.tools.label.spec import Spec

T = TypeVar("T")
# How the probabilities were found, the best way first.
How = Literal["endpoint", "logprobs", "stated", "votes", "bare", "people"]


class Unusable(Exception):
    """A reply is no answer. The exception's text tells the model why, and quotes no secret."""


class Refused(Unusable):
    """The endpoint refused the call with 4xx."""


@dataclass(frozen=True)
class Call:
    """Equal calls have one reply, so repeated samples differ in `number`."""

    path: str  # such as "/chat/completions"
    body: dict[str, Any]
    number: int = 0


class Ask(Protocol):
    async def __call__(self, call: Call, read: Callable[[dict[str, Any]], T]) -> T:
        """Send a call, or find its usable reply in the ledger.

        Args:
            read: makes the result of a reply (decoded JSON), or raises `Unusable`.

        Raises:
            Refused: the endpoint refused this call.
            Unusable: `read` did, or the call failed too often.
        """


@dataclass(frozen=True)
class Answer:
    probabilities: tuple[float, ...]  # sum 1, in the order of `Spec.labels`
    how: How

    def label(self, labels: tuple[str, ...]) -> str:
        return labels[max(range(len(labels)), key=self.probabilities.__getitem__)]


async def results_of(calls: Iterable[Coroutine[Any, Any, T]], *, at_once: bool) -> list[T]:
    """`at_once` makes all calls before it raises the first exception, as a batch needs; else one follows the other."""
    if not at_once:
        return [await call for call in calls]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[T], results)


class Source(ABC):
    """A kind of endpoint."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    async def probe(self, ask: Ask, text: str) -> How:
        """Find, with a few calls, the best way to probabilities that the model really gives. Raises `Unusable`."""
        return (await self.answer(ask, text)).how

    @abstractmethod
    async def answer(self, ask: Ask, text: str) -> Answer:
        """Raises `Unusable` if the model gave no answer of the list, however often it was asked."""
