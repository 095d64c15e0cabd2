"""Manifest, contract, stores."""
