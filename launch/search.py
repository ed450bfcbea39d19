"""The same as ``ignn search``."""

import sys

from distributed_ignn.cli import leave
from distributed_ignn.commands.search import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
