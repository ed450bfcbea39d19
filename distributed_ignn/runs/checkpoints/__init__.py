"""Checkpoints: what is in them, how they are written, read and gone back to."""
