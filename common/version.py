"""The version. It is in a room because rooms cannot import the root."""

__version__ = "0.1.0"
