"""The same as ``ignn partition``."""

import sys

from distributed_ignn.cli import leave
from distributed_ignn.commands.partition import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
