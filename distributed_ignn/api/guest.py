"""Manners in a process that belongs to the user: what a run changes there is put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from distributed_ignn.cli import shown_log
from distributed_ignn.errors import Stopped


@contextmanager
def as_guest(*, verbose: bool = False) -> Iterator[None]:
    """Work with torch's usual settings inside, and leave the user's as they are.

    Random generators, number of threads, default number format, default device and gradient mode
    are put back.

    Args:
        verbose: whether to show on standard error what the library logs.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices))
        if torch.get_default_device().type != "cpu":  # it makes every call slower
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(shown_log() if verbose else nullcontext())
        yield


@contextmanager
def signals_delivered() -> Iterator[None]:
    """Hand a signal that has stopped a run on to the program, once the run has stopped.

    It then means what it always means there: SIGINT is a KeyboardInterrupt, SIGTERM ends the
    process. ``Stopped`` is raised where the program's handler does neither.
    """
    try:
        yield
    except Stopped as stopped:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(stopped.signum)
        raise
