"""What looks at both halves, and what only the command line calls: doctor, bench, verify, try."""
