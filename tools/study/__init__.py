"""`kdc study`: the paper's tables by one command. A grid of trainings, each of them a cell.

`options.py` has the command's options, and `grid.py` says which cells there are; `study.py` finds those that are not
done and has an engine do them: one by one, or side by side by `ray_engine.py`. Each is a job (`jobs.py`) in a process
of its own (`cell_process.py`). `summary.py` averages their scores, `tables.py` makes tables of them beside the paper's
figures, and `write.py` writes these with a picture.
"""
