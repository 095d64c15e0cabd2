"""The decision model behind a service, and the audit of local answers."""
