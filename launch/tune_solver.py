"""The same as ``ignn tune``."""

import sys

from distributed_ignn.cli import leave
from distributed_ignn.commands.tune_solver import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
