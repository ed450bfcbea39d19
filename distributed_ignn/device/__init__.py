"""What depends on the kind of device: how large blocks are, and kernels that a GPU has instead."""
