"""What every room may use: errors, files, places, facts of the machine, progress, tables. Imports no other room."""
