"""Explicit layers: any PyTorch Geometric layer on one part of a divided graph, as on the whole."""
