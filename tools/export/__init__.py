"""`kdc export`: an artifact in the form that another server or registry takes.

Light on purpose: needs the serving install alone, and MLflow for MLflow.
"""
