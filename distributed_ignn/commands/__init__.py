"""One command a module, each a ``main`` from arguments to exit code; ``main.py`` is ``ignn``."""
