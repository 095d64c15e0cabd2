"""`kdc bench`: latency, throughput, cold start and memory of models. Torch and the plot need `[compress]`."""
