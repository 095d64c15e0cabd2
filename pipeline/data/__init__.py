"""The way of a row from its file to its tokens.

    sources.py    finds the file of each split
    readers.py    reads a file to records, and records to rows
    labels.py     reads a row's label, and learns the labels that there are
    rows.py       checks the rows, and keeps the good ones in a file
    splits.py     decides which rows are trained on, tuned on and evaluated
    prepared.py   writes the splits, and opens them again
    tokens.py     tokenises them

Beside the way: `problems.py` lists mistakes, `pydocs.py` makes the built-in task, and `scores.py` reads a black box's
answers.
"""
