"""`kdc doctor`: what is installed on this machine, what really works, and what to do about what does not.

`diagnose.py` gathers the facts, with the help of `probes.py`, which tries in a process of its own whatever may hang,
crash or print. `report.py` is the result, and `advice.py` draws the conclusions from it. Works on an install that only
serves.
"""
