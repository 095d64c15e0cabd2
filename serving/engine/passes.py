"""The forward passes of one model: how many threads a pass has, alone or beside others, and what it raises.

Takes rows as token ids and gives logits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdc.artifact.manifest import CPU_PROVIDER, TokenizerInfo
from kdc.common.errors import KdcError
from kdc.common.pace import Pace
from kdc.serving.engine.long_texts import Encoded
from kdc.serving.engine.providers import OpenSession, open_session, run_bound
from kdc.serving.engine.tokenizing import pad

if TYPE_CHECKING:
    import onnxruntime

_TURN = 16  # passes that are timed with each number of threads when they are compared
_RETRY = "try again with fewer or shorter texts; `kdc doctor` looks at the device"


class Passes:
    """Runs an open session. Several threads may call it at once.

    Each method takes at least one row, pads all to the longest, and gives float32 logits (rows, outputs); of a row in
    windows those of each window.

    Args:
        opened: the session.
        info: how rows are padded.
        outputs: width of the logits.
        lanes: how many passes may run at once by `run_beside`. For several, a second session of the same file is
            opened, which has a lane's share of the threads.
        variant: name of the variant, for messages; "" where it has none.
    """

    def __init__(self, opened: OpenSession, info: TokenizerInfo, outputs: int, *, lanes: int, variant: str) -> None:
        self._info, self._outputs, self._variant = info, outputs, variant
        self._provider, self._threads = opened.provider, opened.threads
        beside = opened if lanes == 1 else _share_of(opened, lanes)
        self._session: onnxruntime.InferenceSession | None = opened.session
        self._beside: onnxruntime.InferenceSession | None = beside.session
        pools = (opened.threads,) if lanes == 1 else (opened.threads, beside.threads)
        self._uses = deque(pools[:1], maxlen=1)  # threads of the next `run`
        # Not a method of this object: a cycle would keep the session until a garbage collection.
        self._pace = Pace(pools, self._uses.append, turn=_TURN, alike=False)
        self._timed = threading.Lock()

    def close(self) -> None:
        """Free the memory of the model. Passes that other threads have begun end as usual; later ones fail."""
        self._session = self._beside = None

    def run(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """A pass that has the threads for itself: it takes all or a share, whichever is faster now.

        Raises:
            KdcError: the model failed, gave NaN or infinity, or is closed.
        """
        if not self._timed.acquire(blocking=False):  # another pass is running, and both are slower for it
            return self._run(self._session, encodings)
        try:
            self._pace.step_begins()
            logits = self._run(self._session if self._uses[0] == self._threads else self._beside, encodings)
            self._pace.step_ends(len(encodings) * max(map(len, encodings)))
            return logits
        finally:
            self._timed.release()

    def run_with_all_threads(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """`run` with all threads, whatever is faster now."""
        return self._run(self._session, encodings)

    def run_beside(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """`run` with a share of the threads: as many such calls at once as there are lanes do more than as many `run`
        in turn."""
        return self._run(self._beside, encodings)

    def _run(self, session: onnxruntime.InferenceSession | None, encodings: Sequence[Encoded]) -> np.ndarray:
        if session is None:
            raise KdcError("the engine is closed", remedy="load the artifact again")
        feeds = pad(encodings, self._info)
        try:
            if self._provider == CPU_PROVIDER:
                (logits,) = session.run(["logits"], feeds)
            else:
                logits = run_bound(session, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower public base
            raise KdcError(
                "the model failed on these texts", given=f"{type(error).__name__} on {self._provider}", remedy=_RETRY
            ) from error
        # Numpy would spread one row's logits over all: each row would get the answer to others.
        if logits.shape != (shape := (len(feeds["input_ids"]), self._outputs)) or logits.dtype.kind != "f":
            raise KdcError(
                "the model's logits do not fit the rows and the task",
                given=f"{logits.dtype} {logits.shape}, not float {shape}",
                remedy="make the artifact again with `kdc compress`",
            )
        if not np.isfinite(logits).all():
            raise KdcError(
                "the model gave NaN or infinity",
                given=f"variant {self._variant or 'without a name'} on {self._provider}",
                remedy="load the variant fp32",
            )
        return np.asarray(logits, dtype=np.float32)


def _share_of(opened: OpenSession, lanes: int) -> OpenSession:
    """A second session of the same file, for one of several lanes: it has its share of the threads."""
    share = max(1, round(opened.threads / lanes))
    return open_session(
        lambda _: opened.path, device="cpu", threads=share, plan_memory=False, read=lambda _: opened.content
    )
