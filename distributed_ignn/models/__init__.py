"""The implicit model: its map, what keeps it a contraction, and its readout."""
