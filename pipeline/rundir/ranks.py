"""The processes that `torchrun` starts for one run: rank 0 leads, the others help with what takes long.

The leader runs the pipeline as if it were alone and writes every file. Where it has work for all (a training, the
teacher's answers) it sends the helpers the function and its arguments; after the student's training they leave.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import Config

_DEVICE = "ACCELERATE_TORCH_DEVICE"
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Helpers wait while the leader reads rows or measures; that another process died they learn at once all the same.
_PATIENCE = timedelta(days=7)


def rank() -> int:
    """This process's number among those that were started together; 0 where it is alone."""
    return int(os.environ["RANK"]) if is_launched() else 0


def is_launched() -> bool:
    """Whether this process was started together with others."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


class Ranks:
    """All processes of a run, seen from one of them. Made by `join`, or `ALONE`.

    Attributes:
        rank: this one's number; 0 leads.
        size: how many there are; 1 once the helpers have left.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group
        self._working = False

    def together(self, work: Callable[..., Any], run: Any, **arguments: Any) -> Any:
        """Have every rank do `work(run, **arguments)`, and wait for all.

        Args:
            work: a function of a module, so that it can be sent.
            run: the leader's run; a helper gives its own.
            **arguments: sent as copies.

        Returns:
            The leader's result.

        Raises:
            KdcError: another process was lost.
        """
        if self.size == 1:
            return work(run, **arguments)
        return self._with_all(partial(self._lead, work, run, arguments))

    def help(self, run: Any) -> None:
        """Do what the leader asks for, until it lets go.

        Raises:
            KdcError: another process was lost.
        """
        while (order := self._with_all(self._order)) is not None:
            self._with_all(partial(self._do, order[0], run, order[1]))
        self._leave()

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Lets the helpers go at the end, also where the leader fails: what went wrong is told once, by it."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.dismiss()
            raise
        self.dismiss()

    def dismiss(self) -> None:
        """Let the helpers go: from here on the leader is alone. Those in the midst of failed work cannot listen."""
        if self.size > 1 and not self._working:
            self._with_all(partial(self._send, None))
            self._leave()

    def check_batches(self, config: Config) -> None:
        """See that every batch can be shared.

        Raises:
            InputError: it cannot.
        """
        for name, size in (("teacher", config.teacher.batch_size), ("student", config.student.batch_size)):
            if size % self.size:
                raise InputError(
                    f"{self.size} processes cannot share a batch evenly",
                    given=f"{name}.batch_size={size}",
                    remedy=f"--set {name}.batch_size={self.size * -(-size // self.size)}, or fewer processes",
                )

    def _lead(self, work: Callable[..., Any], run: Any, arguments: dict[str, Any]) -> Any:
        self._send((work, arguments))
        return self._do(work, run, arguments)

    def _do(self, work: Callable[..., Any], run: Any, arguments: dict[str, Any]) -> Any:
        import torch.distributed as dist

        self._working = True
        result = work(run, **arguments)
        dist.barrier(group=self._group)
        self._working = False
        return result

    def _send(self, order: Any) -> None:
        import torch.distributed as dist

        dist.broadcast_object_list([order], src=0, group=self._group)

    def _order(self) -> Any:
        import torch.distributed as dist

        received = [None]
        dist.broadcast_object_list(received, src=0, group=self._group)
        return received[0]

    def _with_all(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except RuntimeError as error:
            if _is_loss(error):
                raise _lost(f"process {self.rank} of {self.size} heard no more of it") from error
            raise

    def _leave(self) -> None:
        """Forget the group, so that later trainings of this process start none."""
        import torch.distributed as dist
        from accelerate.state import AcceleratorState

        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in [*_VARIABLES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", _DEVICE]:
            os.environ.pop(name, None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.size, self._group = 1, None


ALONE = Ranks()


def join(device: str) -> Ranks:
    """Meet the other processes that were started with this one; nothing where it is alone.

    Args:
        device: "cpu" or "cuda"; on CUDA each process of a machine takes the GPU of its own number.

    Raises:
        InputError: more processes than GPUs.
    """
    if not is_launched():
        return ALONE
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, _stopped)
    if device == "cuda":
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise InputError(
                "there are more processes than GPUs",
                given=f"process {own + 1} of this machine, {there} GPUs",
                remedy=f"torchrun --nproc-per-node {there}",
            )
        torch.cuda.set_device(own)
    else:
        os.environ[_DEVICE] = "cpu"  # accelerate's own "cpu:0" is a place that torch.load does not know
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    # Orders go by gloo on every device, so that whoever waits for one holds no GPU up.
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_PATIENCE))


class Stopped(KdcError):
    """Somebody stopped the run."""


class Lost(KdcError):
    """Another process of the run is gone."""


def is_told_by_another(error: KdcError, rank: int) -> bool:
    """Whether an error of this process would be read twice: all ranks meet wrong input and Ctrl-C, and of a lost
    process two ranks tell, since one of them may be it."""
    return rank > 0 and (isinstance(error, InputError | Stopped) or (isinstance(error, Lost) and rank > 1))


def _lost(how: object) -> Lost:
    return Lost("another process of this run was lost; finished stages and checkpoints are kept", given=how)


def launcher() -> str:
    """How the processes of this run were started, as a person types it; "kdc" where it is alone."""
    if not is_launched():
        return "kdc"
    here, everywhere = os.environ.get("LOCAL_WORLD_SIZE", "?"), os.environ["WORLD_SIZE"]
    hosts = "" if here == everywhere else f"--nnodes {int(everywhere) // int(here)} ... "
    return f"torchrun {hosts}--nproc-per-node {here} -m kdc"


def _stopped(*_: object) -> None:
    """The launcher stops everyone as soon as one process failed."""
    raise _lost("the launcher stops all others")


def _is_loss(error: RuntimeError) -> bool:
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
    )
