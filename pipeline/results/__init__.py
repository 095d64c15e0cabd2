"""The result of each stage: a frozen model, kept as JSON in the stage's folder under "metrics".

A stage returns its model, `rundir/folders.py` writes it, and `Run.result(StudentResult)` reads it again.

Scores are points (0 to 100; correlations -100 to 100), by the name of the metric. Times are seconds unless the name
says milliseconds, sizes are bytes unless the name says megabytes.
"""
