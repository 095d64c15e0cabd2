"""Adds labels and scores to a table of any size (`kdc predict`).

`inputs.py` reads windows of rows, `windows.py` answers them, `outputs.py` writes them, `job.py` keeps finished windows.
Parquet needs pyarrow.
"""
