"""`kdc doctor`: what is installed, what works, and how to mend the rest."""
