"""The same as ``ignn link``."""

import sys

from distributed_ignn.cli import leave
from distributed_ignn.commands.link import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
