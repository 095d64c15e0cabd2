"""The stages of `pipeline/run.py`, one file each, named for what it does. No stage imports another."""
