"""Transfers of artifacts: to and from the Hugging Face hub, BentoML's model store, and every store that fsspec knows.

From the bottom up: `addresses.py` reads an address; `sources.py` defines what a store must answer so that an artifact
can be pulled from it; `files.py` (fsspec), `hub.py` and `bento.py` are the stores. `receiving.py` brings
the bytes of one artifact into a hidden folder and gives that folder its final name. `transfer.py` holds the
commands, which pick the store; a pull is also what `kdc serve` does with an address. The package of a store is imported
only when an address asks for it.
"""
