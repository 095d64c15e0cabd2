"""Adapters, losses, batches and the one training loop."""
