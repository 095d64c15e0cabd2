"""The report of a run: `kdc report RUN`, and the end of every `kdc compress`.

`gather.py` fills the models of `facts.py`; `page.py` writes `report.html`, `report.json` and `report.md`.
"""
