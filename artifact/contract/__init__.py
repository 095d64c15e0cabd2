"""The contract: what an artifact must keep, and its verdict. Imports only pydantic."""
