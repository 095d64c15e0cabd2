"""Tools for every room: errors, files, machine, progress, tables. Imports no other room."""
