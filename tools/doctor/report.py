"""The report of `kdc doctor`: what `kdc doctor --json` prints. Fields that were not found out are left out there."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from kdc.common.machine import Cores, Cpu, Memory, Nvidia


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Provider(_Frozen):
    """An execution provider that ONNX Runtime lists: whether a model really runs on it, and if not, why not."""

    name: str
    starts: bool
    reason: str = ""


class Torch(_Frozen):
    """PyTorch: the CUDA version it was built for ("" for a build for CPUs), and the devices that it sees.

    Attributes:
        words: what it printed on stderr.
        error: why it could not be imported; "" where it could.
    """

    cuda_build: str = ""
    cuda: bool = False
    devices: tuple[str, ...] = ()
    words: str = ""
    error: str = ""


class Hub(_Frozen):
    """The hub's address, and whether it answers; None where it was not asked."""

    endpoint: str
    reachable: bool | None
    detail: str


class Minilm(_Frozen):
    """Where the teacher of the family minilm would come from: the installed package of weights, or the hub."""

    usable: bool
    from_package: bool
    detail: str


class Advice(_Frozen):
    """A finding and its remedy. A problem makes something fail; a note makes something work less well."""

    level: Literal["problem", "note"]
    what: str
    remedy: str


class Report(_Frozen):
    """This machine and this install.

    Attributes:
        kdc: version of kdc; None where it is not installed.
        python, system: versions of Python and of the operating system.
        packages: versions of kdc's dependencies by name (None for those that are missing), by extra: "" is the base
            install.
        torch: None where PyTorch is not installed.
        advice: problems first.
    """

    kdc: str | None
    python: str
    system: str
    packages: dict[str, dict[str, str | None]]
    providers: tuple[Provider, ...]
    torch: Torch | None
    nvidia: Nvidia
    cpu: Cpu
    cores: Cores
    memory: Memory
    hub: Hub
    minilm: Minilm
    advice: tuple[Advice, ...] = ()
