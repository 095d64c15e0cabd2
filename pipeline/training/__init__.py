"""Adapters, losses, batches, baselines and the one training loop."""
