"""`kdc label`: asks a large model for the labels of a table, or reads the answers that it gave before."""
