"""Manifest, lineage, model card and Hugging Face files."""
