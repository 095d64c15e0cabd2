"""The decision model that a service stands in front of: its client, and the audit of local answers."""
