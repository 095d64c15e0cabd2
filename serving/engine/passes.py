"""Forward passes of one model: token ids in, logits out."""

from __future__ import annotations

import math
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

_TURN = 16  # timed passes per number of threads
# Padded tokens of an encoder's pass per thread: larger passes leave a core's cache. Without layers,
# more passes cost more.
PASS_TOKENS = 512
_LAYERS = b"LayerNormalization"  # an operator of all encoders
_RETRY = "try again with fewer or shorter texts; `kdc doctor` looks at the device"


class Passes:
    """Thread-safe. Methods take at least one row, and return float32 logits (parts, outputs)."""

    def __init__(self, opened: OpenSession, info: TokenizerInfo, outputs: int, *, lanes: int, variant: str) -> None:
        self._info, self._outputs, self._variant = info, outputs, variant
        self._provider, self._threads = opened.provider, opened.threads
        beside = opened if lanes == 1 else _share_of(opened, lanes)
        self._session: onnxruntime.InferenceSession | None = opened.session
        self._beside: onnxruntime.InferenceSession | None = beside.session
        self._is_short = opened.provider == CPU_PROVIDER and _LAYERS in opened.content
        pools = (opened.threads,) if lanes == 1 else (opened.threads, beside.threads)
        self._uses = deque(pools[:1], maxlen=1)
        # A method of `self` would make a cycle that keeps the session.
        self._pace = Pace(pools, self._uses.append, turn=_TURN, alike=False)
        self._timed = threading.Lock()

    def close(self) -> None:
        self._session = self._beside = None

    def run(self, encodings: Sequence[Encoded]) -> np.ndarray:
        """All threads or one lane's share, whichever is faster now."""
        if not self._timed.acquire(blocking=False):  # another pass would distort the time
            return self._run(self._session, encodings)
        try:
            self._pace.step_begins()
            logits = self._run(self._session if self._uses[0] == self._threads else self._beside, encodings)
            self._pace.step_ends(len(encodings) * max(map(len, encodings)))
            return logits
        finally:
            self._timed.release()

    def run_with_all_threads(self, encodings: Sequence[Encoded]) -> np.ndarray:
        return self._run(self._session, encodings)

    def run_beside(self, encodings: Sequence[Encoded]) -> np.ndarray:
        return self._run(self._beside, encodings)

    def _run(self, session: onnxruntime.InferenceSession | None, encodings: Sequence[Encoded]) -> np.ndarray:
        if session is None:
            raise KdcError("the engine is closed", remedy="load the artifact again")
        if not self._is_short:
            return self._pass(session, encodings)
        tokens = PASS_TOKENS * session.get_session_options().intra_op_num_threads
        passes = math.ceil(len(encodings) / max(1, tokens // max(map(len, encodings))))
        rows = math.ceil(len(encodings) / passes)
        parts = [encodings[start : start + rows] for start in range(0, len(encodings), rows)]
        return np.concatenate([self._pass(session, part) for part in parts])

    def _pass(self, session: onnxruntime.InferenceSession, encodings: Sequence[Encoded]) -> np.ndarray:
        feeds = pad(encodings, self._info)
        try:
            if self._provider == CPU_PROVIDER:
                (logits,) = session.run(["logits"], feeds)
            else:
                logits = run_bound(session, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base
            raise KdcError(
                "the model failed on these texts", given=f"{type(error).__name__} on {self._provider}", remedy=_RETRY
            ) from error
        # Numpy would broadcast one row's logits to all rows.
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
    share = max(1, round(opened.threads / lanes))
    return open_session(
        lambda _: opened.path, device="cpu", threads=share, plan_memory=False, read=lambda _: opened.content
    )
