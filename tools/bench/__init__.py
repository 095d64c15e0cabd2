"""`kdc bench`: the latency, throughput, cold start and memory of artifacts and Hugging Face models, side by side. Works
on an install that only serves; a model in torch and the plot need `[compress]`."""
