"""Implicit graph neural networks trained on one graph divided among many processes."""

__version__ = "0.1.0"
