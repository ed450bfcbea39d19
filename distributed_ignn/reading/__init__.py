"""Readers of files that somebody else may have written: nothing they hold is trusted or run."""
