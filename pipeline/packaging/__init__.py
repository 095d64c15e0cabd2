"""What an artifact says of its run: manifest, lineage, model card, and the files of a Hugging Face folder."""
