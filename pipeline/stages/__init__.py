"""The stages of `pipeline/run.py`. No stage imports another."""
