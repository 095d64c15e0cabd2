"""Compress a large text classifier into a small, fast one that is proven to be as good, and serve it."""

from __future__ import annotations

__version__ = "0.1.0"
