"""The result of each stage, kept as JSON in the stage's folder under "metrics".

Scores are points (0 to 100; correlations -100 to 100). Times are seconds and sizes are bytes, unless names say
otherwise.
"""
