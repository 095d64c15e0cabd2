"""From data files to tokenised splits."""
