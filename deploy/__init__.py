"""How kdc is deployed."""
