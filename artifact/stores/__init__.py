"""Transfers to and from the Hugging Face hub, BentoML and fsspec, which are imported only when needed.

A store that fails raises `KdcError`.
"""
