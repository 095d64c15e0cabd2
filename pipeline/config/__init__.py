"""The settings of a run: tasks and presets, and how they are resolved with what a person sets.

`settings.py` holds them all, whose sections are in `*_settings.py`; `resolve.py` makes them of flags, `--set`, a file
and `presets.py`; `tasks.py` and `aims.py` say what tasks and aims there are.
"""
