"""``python -m distributed_ignn`` is ``ignn``."""

from __future__ import annotations

from distributed_ignn.commands.main import script

if __name__ == "__main__":
    script()
