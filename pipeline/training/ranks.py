"""The processes of a run under `torchrun`.

Rank 0 leads and writes the results. All ranks run functions marked `@on_all_ranks`. Helpers leave after the student's
training.
"""

import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from kdc.common.errors import InputError, KdcError

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

_DEVICE = "ACCELERATE_TORCH_DEVICE"
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Helpers wait while the leader reads or measures; a lost process is noticed at once.
_PATIENCE = timedelta(days=7)

_group: Any = None  # None if alone
_working = False


class Stopped(KdcError):
    """The run was stopped."""


class Lost(KdcError):
    """Another process is gone."""


def rank() -> int:
    """This process's rank; 0 if alone."""
    return int(os.environ["RANK"]) if is_launched() else 0


def size() -> int:
    """The number of processes; 1 after the helpers left."""
    return 1 if _group is None else int(os.environ["WORLD_SIZE"])


def is_launched() -> bool:
    """Whether there are several processes; False after the helpers left."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def share_of(items: Sequence[T]) -> Sequence[T]:
    return items if _group is None else items[rank() :: size()]


def told_by_leader(number: float) -> float:
    """The leader's value. All ranks must call it."""
    return number if _group is None else float(_broadcast(number))


def launcher() -> str:
    if not is_launched():
        return "kdc"
    here, everywhere = os.environ.get("LOCAL_WORLD_SIZE", "?"), os.environ["WORLD_SIZE"]
    hosts = "" if here == everywhere else f"--nnodes {int(everywhere) // int(here)} ... "
    return f"torchrun {hosts}--nproc-per-node {here} -m kdc"


def on_all_ranks(function: Function) -> Function:
    """Let all ranks run a module-level function.

    Helpers get copies of the arguments except `progress`. The call returns the leader's result, or raises `Lost`.
    """

    @functools.wraps(function)
    def call(*args: Any, progress: Any = None, **kwargs: Any) -> Any:
        if _group is None:
            return function(*args, progress=progress, **kwargs)
        _broadcast((call, args, kwargs))
        return _do(partial(function, *args, progress=progress, **kwargs))

    return call  # type: ignore[return-value]


def join(device: str) -> None:
    """Raises InputError for more processes than GPUs."""
    global _group
    if not is_launched():
        return
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, _stopped)
    if device == "cuda":
        own, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= gpus:
            given, remedy = f"process {own + 1} of this machine, {gpus} GPUs", f"torchrun --nproc-per-node {gpus}"
            raise InputError("there are more processes than GPUs", given=given, remedy=remedy)
        torch.cuda.set_device(own)
    else:
        os.environ[_DEVICE] = "cpu"  # torch.load does not know accelerate's "cpu:0"
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    # Gloo, also on GPUs: waiting for orders keeps none busy.
    _group = dist.new_group(backend="gloo", timeout=_PATIENCE)


def help_leader(check: Callable[[str], None]) -> None:
    """Follow orders until dismissed.

    Raises:
        Lost: a process is gone.
    """
    while (order := _broadcast()) is not None:
        if isinstance(order, str):
            _do(partial(check, order))
        else:
            function, args, kwargs = order
            _do(partial(function.__wrapped__, *args, progress=None, **kwargs))
    _leave()


def check_everywhere(check: Callable[[str], None], settings: str) -> None:
    """`settings` is JSON; helpers use `help_leader`'s `check`."""
    if _group is None:
        check(settings)
    else:
        _broadcast(settings)
        _do(partial(check, settings))


@contextmanager
def leading() -> Iterator[None]:
    """Dismiss the helpers at the end, also on failure."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            dismiss()
        raise
    dismiss()


def dismiss() -> None:
    """Send the helpers away. After a failure they may not listen."""
    if _group is not None and not _working:
        _broadcast(None)
        _leave()


def check_batches(batch_sizes: dict[str, int], processes: int) -> None:
    """Raise InputError for an uneven batch size; keys are setting names."""
    for name, rows in batch_sizes.items():
        if rows % processes:
            raise InputError(
                f"{processes} processes cannot share a batch evenly",
                given=f"{name}={rows}",
                remedy=f"--set {name}={processes * -(-rows // processes)}, or fewer processes",
            )


def is_told_by_another(error: KdcError, rank: int) -> bool:
    """All ranks meet wrong input and Ctrl-C. Ranks 0 and 1 report a lost process, which may be either."""
    return rank > 0 and (isinstance(error, InputError | Stopped) or (isinstance(error, Lost) and rank > 1))


def _do(work: Callable[[], Any]) -> Any:
    import torch.distributed as dist

    global _working
    with _loss_is_told():
        _working = True
        result = work()
        dist.barrier(group=_group)
        _working = False
    return result


def _broadcast(order: Any = None) -> Any:
    import torch.distributed as dist

    orders = [order]
    with _loss_is_told():
        dist.broadcast_object_list(orders, src=0, group=_group)
    return orders[0]


@contextmanager
def _loss_is_told() -> Iterator[None]:
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
        if isinstance(error, dist.DistError) or any(word in str(error) for word in words):
            raise _lost(f"process {rank()} of {size()} heard no more of it") from error
        raise


def _leave() -> None:
    import torch.distributed as dist
    from accelerate.state import AcceleratorState

    global _group
    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in [*_VARIABLES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", _DEVICE]:
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _group = None


def _lost(how: object) -> Lost:
    if signal.getsignal(signal.SIGTERM) is _stopped:  # else it cuts off the message
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return Lost("another process of this run was lost; finished stages and checkpoints are kept", given=how)


def _stopped(*_: object) -> None:
    raise _lost("the launcher stops all others")
