"""The report of `kdc doctor`: its JSON is what `kdc doctor --json` prints."""

from typing import Any, Literal

from pydantic import field_serializer

from kdc.common.frozen import Frozen
from kdc.common.machine import Cores, Cpu, Memory, Nvidia


class Provider(Frozen):
    """An execution provider that ONNX Runtime lists: whether a model really runs on it, and if not, why not."""

    name: str
    starts: bool
    reason: str = ""


class Torch(Frozen):
    """PyTorch: the CUDA version it was built for ("" for a build for CPUs), and the devices that it sees."""

    cuda_build: str = ""
    cuda: bool = False
    devices: tuple[str, ...] = ()
    words: str = ""  # what it printed on stderr
    error: str = ""  # why it could not be imported; "" where it could


class Hub(Frozen):
    """The hub's address, and whether it answers; None where it was not asked."""

    endpoint: str
    reachable: bool | None
    detail: str


class Minilm(Frozen):
    """Where the teacher of the family minilm would come from: the installed package of weights, or the hub."""

    usable: bool
    from_package: bool
    detail: str


class Advice(Frozen):
    """A finding and its remedy. A problem makes something fail; a note makes something work less well."""

    level: Literal["problem", "note"]
    what: str
    remedy: str


class Report(Frozen):
    """This machine and this install.

    Attributes:
        python, system: versions of Python and of the operating system.
        packages: versions of kdc's dependencies by name (None for those that are missing), by extra: "" is the
            base install.
    """

    kdc: str | None  # version of kdc; None where it is not installed
    python: str
    system: str
    packages: dict[str, dict[str, str | None]]
    providers: tuple[Provider, ...]
    torch: Torch | None  # None where PyTorch is not installed
    nvidia: Nvidia
    cpu: Cpu
    cores: Cores
    memory: Memory
    hub: Hub
    minilm: Minilm
    advice: tuple[Advice, ...] = ()  # problems first

    @field_serializer("torch")
    def _only_what_it_said(self, torch: Torch | None) -> dict[str, Any] | None:
        """In JSON, a broken PyTorch has nothing but its error, and one that works has none."""
        return None if torch is None else torch.model_dump(exclude_unset=True)
