"""`kdc bench`: latency, throughput, cold start and memory of models. Models in torch and the plot need `[compress]`."""
