"""`kdc bench`: artifacts and Hugging Face models side by side: latency, throughput, cold start, memory.

`subject.py` is one of them in a process of its own, `turns.py` has them measure themselves in turns, `text.py` and
`plot.py` show what came out. Works on an install that only serves; a model in torch and the plot need `[compress]`.
"""

from __future__ import annotations

from kdc.tools.bench.turns import Case, Subject, parse_subject, run_bench

__all__ = ["Case", "Subject", "parse_subject", "run_bench"]
