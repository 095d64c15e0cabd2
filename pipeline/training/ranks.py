"""The processes that `torchrun` starts for one run: rank 0 leads, the others help.

The leader runs the pipeline as if it were alone, and writes every file. It sends a function marked `@on_all_ranks` (a
training, the teacher's answers) to the helpers with its arguments, and all run it at the same time. The helpers leave
after the student's training.
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
# Helpers wait while the leader reads rows or measures. When another process dies they learn it at once.
_PATIENCE = timedelta(days=7)

_group: Any = None  # the processes that this one works with; None if it is alone
_working = False  # whether all of them are running a function


class Stopped(KdcError):
    """Somebody stopped the run."""


class Lost(KdcError):
    """Another process of the run is gone."""


def rank() -> int:
    """This process's number among those that were started together; 0 leads, or is alone."""
    return int(os.environ["RANK"]) if is_launched() else 0


def size() -> int:
    """How many processes work together; 1 if this one is alone, or the helpers have left."""
    return 1 if _group is None else int(os.environ["WORLD_SIZE"])


def is_launched() -> bool:
    """Whether this process was started together with others that have not left."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def share_of(items: Sequence[T]) -> Sequence[T]:
    """The part of the items that this process takes if all processes divide the work."""
    return items if _group is None else items[rank() :: size()]


def told_by_leader(number: float) -> float:
    """The leader's number, in every process that works on the same function."""
    return number if _group is None else float(_broadcast(number))


def launcher() -> str:
    """The command that started the processes of this run; "kdc" if it is alone."""
    if not is_launched():
        return "kdc"
    here, everywhere = os.environ.get("LOCAL_WORLD_SIZE", "?"), os.environ["WORLD_SIZE"]
    hosts = "" if here == everywhere else f"--nnodes {int(everywhere) // int(here)} ... "
    return f"torchrun {hosts}--nproc-per-node {here} -m kdc"


def on_all_ranks(function: Function) -> Function:
    """Mark a function of a module that all processes of a run do together.

    The leader sends the helpers copies of all arguments but `progress`, which only the leader reports. The call returns
    the leader's result when all are done, and raises `Lost` if another process is gone. A process that is alone just
    calls the function.
    """

    @functools.wraps(function)
    def call(*args: Any, progress: Any = None, **kwargs: Any) -> Any:
        if _group is None:
            return function(*args, progress=progress, **kwargs)
        _broadcast((call, args, kwargs))
        return _do(partial(function, *args, progress=progress, **kwargs))

    return call  # type: ignore[return-value]


def join(device: str) -> None:
    """Meet the other processes that were started with this one, if there are any. On "cuda" each process of a machine
    takes the GPU of its own number.

    Raises:
        InputError: there are more processes than GPUs.
    """
    global _group
    if not is_launched():
        return
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, _stopped)
    if device == "cuda":
        own, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= gpus:
            raise InputError(
                "there are more processes than GPUs",
                given=f"process {own + 1} of this machine, {gpus} GPUs",
                remedy=f"torchrun --nproc-per-node {gpus}",
            )
        torch.cuda.set_device(own)
    else:
        os.environ[_DEVICE] = "cpu"  # accelerate's own "cpu:0" is a place that torch.load does not know
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    # Orders go by gloo on every device: a process that waits for one keeps no GPU busy.
    _group = dist.new_group(backend="gloo", timeout=_PATIENCE)


def help_leader(check: Callable[[str], None]) -> None:
    """Do what the leader asks for, until it lets go; `check` as in `check_everywhere`.

    Raises:
        Lost: another process is gone.
    """
    while (order := _broadcast()) is not None:
        if isinstance(order, str):
            _do(partial(check, order))
        else:
            function, args, kwargs = order
            _do(partial(function.__wrapped__, *args, progress=None, **kwargs))
    _leave()


def check_everywhere(check: Callable[[str], None], settings: str) -> None:
    """Have every process compare what it was given with the leader's settings, as JSON: the leader by this `check`, a
    helper by the one of `help_leader`."""
    if _group is None:
        check(settings)
    else:
        _broadcast(settings)
        _do(partial(check, settings))


@contextmanager
def leading() -> Iterator[None]:
    """Let the helpers go when the block ends, also if the leader fails: then it alone tells what went wrong."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            dismiss()
        raise
    dismiss()


def dismiss() -> None:
    """Let the helpers go: from here on the leader is alone. Helpers whose work failed half-way cannot listen."""
    if _group is not None and not _working:
        _broadcast(None)
        _leave()


def check_batches(batch_sizes: dict[str, int], processes: int) -> None:
    """Refuse batch sizes, by the name of their setting, that so many processes cannot share evenly.

    Raises:
        InputError: there is such a size.
    """
    for name, rows in batch_sizes.items():
        if rows % processes:
            raise InputError(
                f"{processes} processes cannot share a batch evenly",
                given=f"{name}={rows}",
                remedy=f"--set {name}={processes * -(-rows // processes)}, or fewer processes",
            )


def is_told_by_another(error: KdcError, rank: int) -> bool:
    """Whether a person would read an error twice if this process told it too. Every rank meets wrong input and Ctrl-C.
    Two ranks tell of a lost process, since one of them may be that process."""
    return rank > 0 and (isinstance(error, InputError | Stopped) or (isinstance(error, Lost) and rank > 1))


def _do(work: Callable[[], Any]) -> Any:
    """Do what all others do at the same time, and wait for them."""
    import torch.distributed as dist

    global _working
    with _loss_is_told():
        _working = True
        result = work()
        dist.barrier(group=_group)
        _working = False
    return result


def _broadcast(order: Any = None) -> Any:
    """Send an order to all helpers; in a helper, wait for one and return it."""
    import torch.distributed as dist

    orders = [order]
    with _loss_is_told():
        dist.broadcast_object_list(orders, src=0, group=_group)
    return orders[0]


@contextmanager
def _loss_is_told() -> Iterator[None]:
    """Turn a library's error that another process is gone into `Lost`."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
        if isinstance(error, dist.DistError) or any(word in str(error) for word in words):
            raise _lost(f"process {rank()} of {size()} heard no more of it") from error
        raise


def _leave() -> None:
    """Forget the group: later trainings of this process start none."""
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
    if signal.getsignal(signal.SIGTERM) is _stopped:  # it would cut off what this process tells of its end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return Lost("another process of this run was lost; finished stages and checkpoints are kept", given=how)


def _stopped(*_: object) -> None:
    """The launcher stops all processes as soon as one of them failed."""
    raise _lost("the launcher stops all others")
