"""How long a call takes."""

import time
from collections.abc import Callable


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds that one call of `call` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
