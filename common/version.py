"""The version of kdc, here and not in the root: the root imports the rooms, so no room may import the root."""

from __future__ import annotations

__version__ = "0.1.0"
