"""The contract: what an artifact must keep, checked before it is served and wherever it will run.

`terms.py` says what can be asked and what was found, `costs.py` measures through the engine that serves, `verdict.py`
decides, `verify.py` checks an artifact again. Light: no torch; what needs the rows' metrics imports the pipeline then.
"""
