"""Tools for every room. Imports no other room."""
