"""The contract: what an artifact must keep, as plain data and rules.

`terms.py` says what can be asked and what is measured, and reads terms that people give; `judgement.py` derives the
verdict, as the manifest records it; `text.py` shows it to people, and `contract_options.py` has the options that ask
it. Measuring needs an engine and rows and is in `kdc.pipeline.quality`. Light: standard library, pydantic, and Typer
for the options.
"""
