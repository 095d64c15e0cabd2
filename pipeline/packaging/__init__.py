"""An artifact's manifest, lineage, model card and Hugging Face files."""
