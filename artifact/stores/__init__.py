"""Transfers of artifacts: the Hugging Face hub, BentoML's model store, and every store that fsspec knows.

`transfer.py` has the commands. A store's package is imported only when an address needs it.
"""
