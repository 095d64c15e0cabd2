"""From files to rows to tokens: read, validate, split, tokenise."""
