"""From data files to tokenised splits.

sources.py    finds the file of each split
readers.py    reads files to rows
labels.py     reads and learns labels
rows.py       checks rows and stores the good ones
splits.py     chooses training, tuning and evaluation rows
prepared.py   writes and opens the splits
tokens.py     tokenises them
"""
