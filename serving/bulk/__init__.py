"""`kdc predict`. Parquet needs pyarrow."""
