"""The decision model behind a service: its client, and the audit of local answers."""
