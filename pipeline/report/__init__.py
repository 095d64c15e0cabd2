"""The proof as a page: `kdc report RUN`, and the end of every `kdc compress`.

`gather.py` gathers what the stages measured, with intervals and calibration, as the models of `facts.py`;
`disagreements.py` adds examples. `plots.py` draws with `drawing.py`; `page.py` writes `report.html` (from the templates
beside it, through `packaging/markup.py`), `report.json` and `report.md` into the run.
"""
