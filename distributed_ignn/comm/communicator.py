"""Communicator: everything a rank may ask of the others, passed explicitly to whoever needs it.

This package is the only one that touches ``torch.distributed``. A single process needs no process
group: every call then answers at once. CUDA tensors over gloo are staged through pinned memory, so
that several ranks may share one GPU.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from distributed_ignn.comm import backends
from distributed_ignn.comm.activity import Activity
from distributed_ignn.comm.clock import Clock
from distributed_ignn.comm.traffic import Traffic
from distributed_ignn.comm.watchdog import Watchdog
from distributed_ignn.device.triton_seam import kernels_obstacle
from distributed_ignn.errors import UserError

T = TypeVar("T")


@dataclass(slots=True)
class PendingRows:
    """Rows on their way; ``wait`` hands them over."""

    received: Tensor
    work: dist.Work | None
    device: torch.device
    sent: Tensor  # kept alive until the transfer is over
    clock: Clock
    fetch: Callable[[], None] | None = None  # brings rows that wait in shared memory

    def arrived(self) -> bool:
        """Whether ``wait`` would return at once, as far as this rank can tell.

        It cannot tell of rows that arrive on a GPU: the host runs ahead of that. So what is
        launched does not depend on the time, either.
        """
        if self.work is None:
            return True
        return not self.received.is_cuda and self.work.is_completed()

    def wait(self) -> Tensor:
        """Block until the rows are here and return them, [sum of receive counts, D]."""
        if self.work is not None:
            with self.clock.measure("exposed"):
                self.work.wait()
                if self.fetch is not None:
                    self.fetch()
        return self.received.to(self.device, non_blocking=True)


class Communicator:
    """One rank's view of the job.

    Args:
        rank, world_size, local_rank: position of this process in the job and on its machine.
        device: where this rank computes.
        owns_group: whether ``close`` ends the process group.
        spans_machines: whether some ranks run on other machines.
        shares_memory: whether rows may go through memory that ranks share; CPUs of one machine.
        timeout_seconds: how long one rank waits for others, for messages.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        device: torch.device | None = None,
        *,
        owns_group: bool = False,
        spans_machines: bool = False,
        shares_memory: bool = True,
        timeout_seconds: float = 1800.0,
    ) -> None:
        self.rank = rank
        self.timeout_seconds = timeout_seconds
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device or torch.device("cpu")
        self.traffic = Traffic()
        self.activity = Activity()
        self.watchdog: Watchdog | None = None
        self._before_close: list[weakref.WeakMethod[Callable[[], None]]] = []
        self.clock = Clock(self.device)
        self.spans_machines = spans_machines
        self._owns_group = owns_group
        alone = world_size == 1 or spans_machines or self.device.type != "cpu"
        self.shares_memory = shares_memory and not alone
        self._staged = self.device.type == "cuda" and self.backend == "gloo"

    @property
    def backend(self) -> str:
        """Name of the transport: ``gloo``, ``nccl`` or ``none`` for a single process."""
        return str(dist.get_backend()) if self.world_size > 1 else "none"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def start_exchange(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> PendingRows:
        """Begin an all-to-all of rows; every rank must call it.

        Args:
            rows: [sum(send_counts), D] contiguous, grouped by receiving rank.
            send_counts, recv_counts: rows to and from each rank, world_size entries each.
        """
        self.traffic.exchanges += 1
        self.traffic.exchange_bytes += rows.numel() * rows.element_size()
        shape = (sum(recv_counts), rows.shape[1])
        if self.world_size == 1:
            return PendingRows(rows.new_empty(shape), None, self.device, rows, self.clock)
        sent = _to_pinned(rows) if self._staged else rows.contiguous()
        received = torch.empty(shape, dtype=rows.dtype, device=sent.device, pin_memory=self._staged)
        work = dist.all_to_all_single(
            received, sent, list(recv_counts), list(send_counts), async_op=True
        )
        return PendingRows(received, work, self.device, sent, self.clock)

    def start_signal(self) -> dist.Work:
        """Begin to tell every rank that this one has come so far; every rank must call it.

        The work that is returned is done when all others have.
        """
        told, heard = torch.zeros(2, self.world_size)
        return dist.all_to_all_single(heard, told, async_op=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place; returns ``tensor``."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place; returns ``tensor``."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def _all_reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        self.traffic.reductions += 1
        if self.world_size == 1:
            return tensor
        self.traffic.reduction_bytes += tensor.numel() * tensor.element_size()
        needs_cpu = self._staged and tensor.device.type == "cuda"
        needs_gpu = self.backend == "nccl" and tensor.device.type == "cpu"
        with self.clock.measure("reduce"):
            if not (needs_cpu or needs_gpu):
                dist.all_reduce(tensor, op)
                return tensor
            moved = tensor.to("cpu" if needs_cpu else self.device)
            dist.all_reduce(moved, op)
            return tensor.copy_(moved)

    def barrier(self) -> None:
        """Wait for every rank."""
        self._all_reduce(torch.zeros(1), dist.ReduceOp.SUM)

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (anything JSON can hold), in rank order, on every rank."""
        if self.world_size == 1:
            return [json.loads(json.dumps(value))]
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = payload.numel()
        self.sum(lengths)
        table = torch.zeros(self.world_size, int(lengths.max()), dtype=torch.uint8)
        table[self.rank, : payload.numel()] = payload
        self.sum(table)
        return [
            json.loads(bytes(table[r, : int(lengths[r])].tolist())) for r in range(self.world_size)
        ]

    def together(self, action: Callable[[], T], *, doing: str = "go on", way_out: str = "") -> T:
        """Do rank-local work that a mistake or a full disk can stop, and fail on all ranks alike.

        Without it a rank whose work fails leaves the others waiting in the next collective. The
        others wait in one, so that the work may take ``comm.timeout_seconds`` at most: what may
        take longer is for ``comm.apart``.

        Args:
            action: this rank's work; its result is returned.
            doing: completes "cannot ..." where the operating system refuses.
            way_out: what the user can do about that.

        Raises:
            UserError: the first failing rank's message, on every rank.
        """
        result, problem = attempt(action, doing, way_out)
        self.agree(problem)
        return cast(T, result)

    def agree(self, error: str | None) -> None:
        """Raise the first rank's error message on every rank, or return if there is none.

        Raises:
            UserError: some rank reported an error.
        """
        for message in self.gather_json(error):
            if message is not None:
                raise UserError(message)

    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks, for a library that asks for one."""
        return dist.group.WORLD

    def group_alone(self) -> dist.ProcessGroup:
        """A new process group of this rank alone, for a library that asks for one."""
        return dist.new_group([self.rank], use_local_synchronization=True)

    def before_close(self, let_go: Callable[[], None]) -> None:
        """Have ``close`` call a method before it ends the process group.

        Args:
            let_go: a bound method; its object is not kept alive, and none is called that is gone.
        """
        self._before_close = [known for known in self._before_close if known() is not None]
        self._before_close.append(weakref.WeakMethod(let_go))

    def close(self, *, failed: bool = False) -> None:
        """Stop watching the others, and end the process group if this communicator started it.

        Args:
            failed: whether this rank leaves by an exception, which the others may not share. They
                are told, and NCCL's group is left as it is: to end it is a meeting of all ranks.
        """
        if self.watchdog is not None:
            self.watchdog.end(failed=failed)
            self.watchdog.close()
            self.watchdog = None
        if failed and self.backend == "nccl":
            return
        for known in self._before_close:
            let_go = known()
            if let_go is not None:
                let_go()
        self._before_close.clear()
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()


def attempt(action: Callable[[], T], doing: str, way_out: str) -> tuple[T | None, str | None]:
    """What ``action`` returns, and what a user has to know where it cannot; see ``together``."""
    try:
        return action(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        advice = f"; {way_out}" if way_out else ""
        return None, f"cannot {doing}: {error.strerror or error}{advice}"


def start_communicator(
    *,
    rank: int,
    world_size: int,
    local_rank: int,
    device: torch.device,
    local_world_size: int | None = None,
    backend: str = "auto",
    init_method: str = "env://",
    timeout_seconds: float = 1800.0,
    hang_seconds: float = 0.0,
    shares_memory: bool = True,
) -> Communicator:
    """Join the job and return this rank's Communicator.

    A process group that somebody else started (Ray Train) is used as it is and left open on close.

    Args:
        rank, world_size, local_rank: position in the job and on this machine.
        device: where this rank computes; made the current one if it is a GPU.
        local_world_size: ranks on this machine; all of them by default.
        backend: see ``choose_backend``.
        init_method, timeout_seconds: how ranks find each other, and how long one waits for others.
        hang_seconds: after which a watchdog will name a lost rank; 0 where there will be none.
        shares_memory: whether rows may go through shared memory where ranks are on one machine.

    Raises:
        UserError: nccl was asked for without a GPU per rank, gloo is to use a network interface
            that is not there, or see ``join``.
        JobError: another rank did not come.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # nccl and libraries that ask for no device use it
    if world_size == 1 and not dist.is_initialized():
        return Communicator(rank, world_size, local_rank, device)
    own = not dist.is_initialized()
    if own:
        if device.type == "cpu" or backend == "gloo":
            backends.check_interfaces()
        store = backends.meet(rank, world_size, init_method, timeout_seconds)
        name = backends.agreed_backend(store, rank, world_size, backend, device)
        if name == "gloo":
            backends.check_interfaces()
        else:
            watched = hang_seconds > 0 and init_method == "env://"
            os.environ |= backends.nccl_environment(watched=watched)
        dist.init_process_group(
            name,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds),
            **backends.group_arguments(name, device),
        )
    comm = Communicator(
        rank,
        world_size,
        local_rank,
        device,
        owns_group=own,
        spans_machines=local_world_size is not None and local_world_size < world_size,
        shares_memory=shares_memory,
        timeout_seconds=timeout_seconds,
    )
    if not own:
        backends.settle_kernels(comm.gather_json(kernels_obstacle(device)), rank)
    return comm


def joined() -> tuple[int, int] | None:
    """Rank and number of ranks of the process group that somebody has started, if any."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else None


def _to_pinned(rows: Tensor) -> Tensor:
    pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    pinned.copy_(rows)
    return pinned
