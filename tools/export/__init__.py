"""`kdc export`: an artifact for another server or registry. Needs only the serving install, and MLflow for MLflow."""
