"""`python -m kdc`, `torchrun -m kdc`: the command line."""

from kdc.cli import main

if __name__ == "__main__":
    main()
