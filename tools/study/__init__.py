"""`kdc study`: the paper's tables by one command. A grid of trainings, each of them a cell.

`study.py` is the command. `grid.py` says which cells there are; `schedule.py` finds those that are not done and has an
engine do them: one by one, or side by side by `ray_engine.py`. Each is a job (`jobs.py`) in a process of its own
(`cell_process.py`), which reads and writes the models of `cell.py`. `summary.py` averages their scores, `tables.py`
makes tables of them beside the figures of `paper.py`, and `write.py` writes these with the picture of `plot.py`.
"""
