"""A room of its own: rooms cannot import the root."""

__version__ = "0.1.0"
