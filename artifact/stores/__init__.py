"""Transfers to and from the Hugging Face hub, BentoML's model store, and fsspec's stores. Their packages are imported
only when needed."""
