"""Artifacts on the way: to and from the Hugging Face hub, BentoML's model store, and every store that fsspec knows.

`addresses.py` reads an address; `sources.py` is what is asked of a store to pull from it, and opens the right one:
`files.py` (fsspec), `hub.py` (its pushes are `hub_push.py`), `bento.py`. `pull.py` and `push.py` are the commands,
`cache.py` is what `kdc serve` does with an address. Nothing of a store is imported before an address asks for it.
"""
