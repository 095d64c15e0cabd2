"""The stages of `pipeline/run.py`. None imports another. Those after `search` may read `vocabulary/` and `search/`."""
