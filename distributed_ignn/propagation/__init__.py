"""Halo exchange and sparse products: the one place where graphs meet communication."""
