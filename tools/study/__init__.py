"""`kdc study`: the paper's tables by one command. A grid of trainings, each a cell of its own.

`grid.py` says which cells there are, `cell.py` trains one in a process of its own, `run.py` has them done and goes on
where it was cut off: one by one, or side by side by `ray_engine.py`. `tables.py` makes tables of their scores beside
`paper.py`, `write.py` writes them.
"""

from __future__ import annotations
