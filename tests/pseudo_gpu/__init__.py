"""A GPU that is emulated, and the tests that run on it.

``preload`` has to be imported before torch; nothing here may import torch on the way to it.
"""
