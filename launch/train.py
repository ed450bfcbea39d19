"""Train an implicit graph neural network: under torchrun, as one process, or on a Ray cluster.

torchrun --standalone --nproc-per-node 2 launch/train.py --dataset citeseer
python launch/train.py --dataset citeseer --workers 2 --device cpu
ray job submit -- python launch/train.py --dataset ogbn-products --gpus 8
"""

from __future__ import annotations

import sys

from distributed_ignn.launchers.entry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
