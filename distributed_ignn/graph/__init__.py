"""Graphs: datasets, partitions, shards, halo exchange and propagation."""
