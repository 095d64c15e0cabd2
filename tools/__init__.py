"""Commands above pipeline and serving: doctor, bench, verify, evaluate, export, try."""
