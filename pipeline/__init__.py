"""The data: from the open web to Parquet shards."""
