"""How kdc is deployed; `bento.py` is the service of a Bento."""
