"""Graphs: datasets, partitions, shards and their storage."""
