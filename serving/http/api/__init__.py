"""The routes, by dialect."""
