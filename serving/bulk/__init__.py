"""Adds labels and scores to a table of any size (`kdc predict`).

Parquet needs pyarrow.
"""
