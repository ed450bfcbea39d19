"""The same as ``ignn train``."""

import sys

from distributed_ignn.cli import leave
from distributed_ignn.commands.train import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
