"""Models, adapters, losses, batches and the one training loop."""
