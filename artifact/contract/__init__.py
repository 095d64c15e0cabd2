"""Imports only pydantic."""
