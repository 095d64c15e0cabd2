"""`kdc bench`: the latency, throughput, cold start and memory of artifacts and Hugging Face models, side by side.

`run.py` starts the subjects and lets them measure themselves in turns; `subject_process.py` is the program that loads
and times one subject; `result.py` is what comes out, and `plot.py` draws it. Works on an install that only
serves; a model in torch and the plot need `[compress]`.
"""
