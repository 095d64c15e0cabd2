"""What every room may use: errors, facts of the machine, places, progress. Imports nothing of ours."""
