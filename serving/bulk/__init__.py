"""Answers a table of texts of any size: the same table comes out, with labels and scores (`kdc predict`).

`request.py` says what can be asked and checks it, `predict_options.py` has the command's options, and `predict.py`
does it.
`job.py` holds a job and its finished windows, `inputs.py` reads windows of rows, `windows.py` answers one, and
`outputs.py` writes it. `local_job.py` does so in this process; `ray_job.py` does so on a Ray cluster, with what
`ray_workers.py` runs on its nodes. Nothing here needs torch; Parquet needs pyarrow.
"""
