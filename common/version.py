"""The version of kdc. Not in the root, which imports the rooms, so no room may import it."""

__version__ = "0.1.0"
