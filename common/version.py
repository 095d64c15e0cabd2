"""The version of kdc, here and not in the root: the root imports the rooms, so no room may import the root."""

__version__ = "0.1.0"
