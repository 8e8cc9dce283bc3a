"""Offline jobs over folders and Parquet files of millions of pictures, on Ray Data."""
