"""The contract: what an artifact must keep, as data (`terms.py`), and its verdict (`judgement.py`).

Light imports only: standard library, pydantic, Typer. `kdc.pipeline.quality` measures.
"""
