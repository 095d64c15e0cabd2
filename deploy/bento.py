"""The service as a Bento names it: `deploy.bento:Classifier` (`[tool.bentoml.build]` in pyproject.toml).

A Bento copies the repository's files without installing them, so Python finds no package `kdc`. This file gives the
folder that name first, unless `kdc` is imported already.
"""

import importlib.util
import sys
from pathlib import Path

if "kdc" not in sys.modules:
    _FOLDER = Path(__file__).resolve().parents[1]
    _SPEC = importlib.util.spec_from_file_location(
        "kdc", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert _SPEC is not None
    assert _SPEC.loader is not None
    sys.modules["kdc"] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules["kdc"])

from kdc.serving.service import Classifier

__all__ = ["Classifier"]
