"""The local sparse product alone, forward and transposed, by every kernel there is.

Baselines: torch's CSR product on rows in a plain user's order, and the time in which the bytes that
have to move could be copied. The copy limit counts every row of the dense matrices once and 32-bit
indices without values; the gather limit a row for every entry, so that a product beyond it owes
that to the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from distributed_ignn.lab.benchmarks.bandwidth import (
    COPY_LIMIT,
    GATHER_LIMIT,
    ProductSize,
    copy_task,
)
from distributed_ignn.lab.benchmarks.benchmark_graph import Workload
from distributed_ignn.lab.benchmarks.interleaving import (
    Figure,
    Report,
    check_alike,
    compare,
    interleave,
)
from distributed_ignn.lab.benchmarks.products import PLAIN, LocalProduct, build_products

_COPY = "copy"


@torch.no_grad()
def run(workload: Workload) -> Report:
    """Measure on all ranks at once; every rank calls it."""
    shard = workload.shard
    torch.manual_seed(0)
    rows = shard.num_owned + shard.num_halo
    local = torch.rand(rows, workload.width, device=workload.comm.device)
    return measure(workload, build_products(shard, workload.comm, local, workload.tell), local)


def measure(
    workload: Workload,
    products: Mapping[str, LocalProduct],
    local: Tensor,
    tolerance: float = 1e-4,
    copy_bytes: int | None = None,
) -> Report:
    """Measure products that are there already; every rank calls it.

    Args:
        workload: whose shard the products are of.
        products: by name, the baseline first.
        local: own rows and halo rows [L, D], of whatever width D and format they take.
        tolerance: of their difference, relative to the largest entry.
        copy_bytes: see ``copy_task``.
    """
    comm = workload.comm
    inputs = {name: _in_layout(product, local) for name, product in products.items()}
    results = {name: product.forward(inputs[name]) for name, product in products.items()}
    check_alike(_compared(products, results), comm, tolerance)
    copy, copied = copy_task(comm, copy_bytes)
    tasks: dict[str, Callable[[], object]] = {_COPY: copy}
    tasks |= {f"forward {n}": partial(p.forward, inputs[n]) for n, p in products.items()}
    tasks |= {f"transpose {n}": partial(p.transpose, results[n]) for n, p in products.items()}
    seconds = interleave(tasks, workload.rounds, comm)
    bandwidth = copied / seconds.pop(_COPY)
    size = _size(workload, local)
    figures: tuple[Figure, ...] = ()
    for direction in ("forward", "transpose"):
        found = {name: seconds[f"{direction} {name}"] for name in products}
        figures += compare(found, "seconds", PLAIN, direction)
        for limit, moved in ((COPY_LIMIT, size.ideal_bytes), (GATHER_LIMIT, size.gathered_bytes)):
            figures += compare({limit: moved / bandwidth, **found}, "seconds", limit, direction)
    settings = {
        **workload.settings(),
        "width": local.shape[1],
        "copy_bytes_per_second": bandwidth,
        "rows_largest": size.rows,
        "entries_largest": size.entries,
        "ideal_bytes_largest": size.ideal_bytes,
        "gathered_bytes_largest": size.gathered_bytes,
    }
    return Report("propagate", settings, figures)


def _in_layout(product: LocalProduct, local: Tensor) -> Tensor:
    """Rows [L, D] of ours where the product wants them."""
    layout, owned = product.layout, product.layout.rows.numel()
    order = torch.cat([layout.rows, layout.halo + owned])
    return local[order.to(local.device)]


def _compared(
    products: Mapping[str, LocalProduct], results: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, ...]]:
    """y and A' y of every product, in our order."""
    found = {}
    for name, product in products.items():
        y, rows = results[name], product.layout.rows.to(results[name].device)
        own, halo = product.transpose(y)
        places = (rows, rows, product.layout.halo.to(y.device))
        found[name] = tuple(
            torch.empty_like(values).index_copy_(0, place, values)
            for place, values in zip(places, (y, own, halo), strict=True)
        )
    return found


def _size(workload: Workload, local: Tensor) -> ProductSize:
    """Of the largest part: the slowest rank's time is what counts."""
    shard, comm = workload.shard, workload.comm
    channel = shard.channels[0]
    entries = channel.owned.num_entries + channel.boundary.num_entries
    sizes = torch.tensor([shard.num_owned, shard.num_owned + shard.num_halo, entries])
    rows, cols, entries = comm.max(sizes).tolist()
    return ProductSize(rows, cols, entries, local.shape[1], local.element_size())
