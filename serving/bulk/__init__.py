"""Answers a table of texts of any size: the same table comes out, with labels and scores (`kdc predict`).

`job.py` holds a job and its finished windows, `inputs.py` reads windows of rows, `windows.py` answers one, and
`outputs.py` writes it. `predict.py` does this in one process, `ray_job.py` and `ray_workers.py` on a Ray cluster.
Nothing here needs torch; Parquet needs pyarrow.
"""
