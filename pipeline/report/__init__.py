"""The proof as a page: `kdc report RUN`, and the end of every `kdc compress`.

`facts.py` gathers what the stages measured, with intervals and calibration, `plots.py` draws, `page.py` writes
`report.html`, `report.json` and `report.md` into the run.
"""
