"""What looks at both halves, and what only the command line calls: doctor, bench, study, verify, try."""
