"""The contract: what an artifact must keep, as plain data and rules.

`terms.py` says what can be asked and what is measured; `parse.py` reads terms that people give; `decision.py` derives
the verdict from the measurements; `judgement.py` is the record of it in the manifest; `text.py` shows it to people.
Measuring needs an engine and rows and is in `kdc.pipeline.quality`. Light: standard library and pydantic.
"""
