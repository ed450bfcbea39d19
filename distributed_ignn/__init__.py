"""Implicit graph neural networks trained on one graph divided among many processes.

On import the environment variable ``THP_MEM_ALLOC_ENABLE`` of torch's CPU allocator is switched on
unless it is set: blocks of 2 MiB and more are then asked for in huge pages. A solve makes and frees
arrays of n x D numbers all the time, which Linux maps anew each time; with pages of 4 KiB a copy of
60 MB takes 31 ms instead of 7 (measured), most of it in page faults.
"""

import os

__version__ = "0.1.0"

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read at torch's first large allocation
