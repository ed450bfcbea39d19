"""Shards on disk and their manifest."""
