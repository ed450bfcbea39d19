"""Every kernel compiled for a GPU that need not be there, and what it takes of one.

``python -m tests.device.compiled_cases`` prints the table of docs/gpu.md.
"""

from __future__ import annotations

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.graph.hashing import _FACTORS
from tests.device.triton_runs import Resources, resources, run_compiling
from tests.propagation.triton_cases import compiled_rows


def compiled(comm: Communicator, capability: int) -> dict[str, Resources]:
    """All of them, by name and case."""
    return {
        **compiled_rows(comm, capability),
        **compiled_history(comm, capability),
        **compiled_codecs(comm, capability),
        **compiled_mask(comm, capability),
    }


def compiled_history(comm: Communicator, capability: int) -> dict[str, Resources]:
    """Kernels of a memory of five, with differences in float32 and in bfloat16, and of ten."""
    import triton.language as tl

    from distributed_ignn.device import triton_history as kernels

    found = {}
    for memory, stored in ((5, "*fp32"), (5, "*bf16"), (10, "*fp32")):
        case = f"M = {memory}, {stored.removeprefix('*')}"
        numbers = {"partial_ptr": "*fp64", "count": "i32 16", "steps": "i32"}
        arrays = dict.fromkeys(("point_ptr", "ahead_ptr", "before_ptr", "held_ptr"), "*fp32")
        arrays |= {"fresh_ptr": "*fp32", "residual_ptr": stored, "estimate_ptr": stored}
        constants = {"HAS_SLOT": True, "HOLDS_RESIDUAL": True, "KEEP": True, "EXTRA": 2}
        block = kernels._BLOCK if memory + 2 <= kernels._FEW else kernels._BLOCK // 2
        found[f"enter_kernel, {case}"] = resources(
            kernels.enter_kernel,
            numbers | arrays | {"older_ptrs": (stored,) * (memory - 1)},
            constants | {"COMPUTE": tl.float32, "BLOCK": block},
            capability,
        )
        if memory > 5 or stored == "*bf16":
            continue
        differences = {"estimate_ptrs": (stored,) * memory, "change_ptrs": (stored,) * memory}
        weights = {"alpha_ptr": "*fp64", "beta_ptr": "*fp64", "mixed_ptr": "*fp32"}
        found[f"mix_kernel, {case}"] = resources(
            kernels.mix_kernel,
            numbers | arrays | differences | weights | {"residual_ptr": "*fp32"},
            {"HOLDS_RESIDUAL": True, "HAS_BETA": True, "COMPUTE": tl.float32, "BLOCK": 512},
            capability,
        )
    found["finish_kernel"] = resources(
        kernels.finish_kernel,
        {"partial_ptr": "*fp64", "total_ptr": "*fp64", "programs": "i32"},
        {"SUMS": 7, "GRAM": 6, "SQUARE": True, "BLOCK": kernels.PROGRAMS},
        capability,
        num_warps=kernels.FINISH_WARPS,
    )
    found["squares_kernel"] = resources(
        kernels.squares_kernel,
        {"point_ptr": "*fp32", "image_ptr": "*fp32", "partial_ptr": "*fp64"}
        | {"count": "i32 16", "steps": "i32"},
        {"COMPUTE": tl.float32, "BLOCK": kernels._BLOCK},
        capability,
    )
    return found


def compiled_codecs(comm: Communicator, capability: int) -> dict[str, Resources]:
    """Kernels for 128 columns of codes whose groups are a byte, three bytes, and an entry."""
    from distributed_ignn.comm.packing import GROUPS
    from distributed_ignn.device import triton_codecs as kernels

    numbers = dict.fromkeys(("source_stride", "num_rows", "D", "num_groups"), "i32 16")
    numbers |= {"payload_stride": "i32", "count": "i32 16"}
    types = numbers | {"source_ptr": "*fp32", "index_ptr": "*i64", "held_ptr": "*fp32"}
    types |= {"lost_ptr": "*fp64"}
    types |= dict.fromkeys(("threshold_ptr", "scale_ptr", "inverse_ptr"), "*fp32")
    gathers = {"HAS_INDEX": True, "HAS_HELD": True}
    found = {}
    for bits in (4, 3):
        group, size = GROUPS[bits]
        groups = 128 // group
        form = {"BITS": bits, "GROUP": group, "SIZE": size, "ROWS": 16, "BLOCK_G": groups}
        bytes_ = types | {"payload_ptr": "*u8"}
        for name, constants in (
            ("encode_integers_kernel", form | gathers | {"LARGEST": 2 ** (bits - 1) - 1}),
            ("decode_integers_kernel", form | {"HAS_HELD": True}),
        ):
            kernel = getattr(kernels, name)
            found[f"{name}, int{bits}"] = resources(
                kernel, bytes_, constants, capability, enable_fp_fusion=False
            )
    halves = types | {"payload_ptr": "*i16"}
    found["encode_bfloat16_kernel"] = resources(
        kernels.encode_bfloat16_kernel,
        halves,
        gathers | {"ROWS": 16, "BLOCK_D": 128},
        capability,
    )
    found["decode_bfloat16_kernel"] = resources(
        kernels.decode_bfloat16_kernel, halves, {"HAS_HELD": True, "BLOCK": 2048}, capability
    )
    return found


def compiled_mask(comm: Communicator, capability: int) -> dict[str, Resources]:
    """The kernel of dropout masks."""
    from distributed_ignn.device import triton_dropout as kernels

    types = {"node_ptr": "*i64", "mask_ptr": "*u8", "row_key": "i64", "column_key": "i64"}
    types |= {"least": "i32", "num_rows": "i32", "D": "i32 16"}
    tile = {"ROWS": 32, "BLOCK_D": 128}
    return {"mask_kernel": resources(kernels.mask_kernel, types, _FACTORS | tile, capability)}


def main() -> None:
    """Print the table."""
    tables = {capability: run_compiling(compiled, capability) for capability in (80, 90)}
    print("| kernel | registers sm_80 / sm_90 | shared bytes | spilled |\n|---|---|---|---|")
    for name, first in tables[80].items():
        second = tables[90][name]
        print(
            f"| {name} | {first.registers} / {second.registers} "
            f"| {first.shared:,} / {second.shared:,} | {first.spilled} / {second.spilled} |"
        )


if __name__ == "__main__":
    main()
