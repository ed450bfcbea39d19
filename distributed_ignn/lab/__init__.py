"""Measurements, planning and studies; nothing outside lab and commands imports it."""
