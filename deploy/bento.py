"""The service as a Bento names it: `deploy.bento:Classifier` (see `[tool.bentoml.build]` in pyproject.toml).

A Bento holds a copy of the repository's files, but not an installed package: the folder with the files *is* the package
`kdc`, and Python finds no package by that name inside it. This file therefore gives the folder that name before it
imports the service. Where `kdc` has been imported already, from an installation or a checkout, it is left as it is.
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
