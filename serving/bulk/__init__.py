"""Bulk scoring: a table of texts of any size in, the same table with labels and scores out (`kdc predict`).

`session.py` is the command, `job.py` what is asked and kept, `local_job.py` the loop; `inputs.py` reads windows of
rows, `windows.py` answers one, `outputs.py` writes it, `places.py` knows local paths from addresses. `ray_job.py` does
the same on Ray, shared out by `ray_cluster.py`, with what `ray_workers.py` does on its nodes. Needs no torch; Parquet
needs pyarrow.
"""
