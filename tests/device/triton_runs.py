"""Running Triton's kernels where there is no GPU: interpreted, counted, or only compiled.

Whether kernels are compiled or interpreted is decided when Triton is imported, so each way has
processes of its own; they are forked from one that has not imported it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from distributed_ignn.comm.communicator import Communicator
from distributed_ignn.device.triton_seam import SWITCH
from tests.ranks import run_ranks


def run_interpreted(fn: Callable[..., Any], *args: Any, ranks: int = 1) -> list[Any]:
    """``fn(comm, *args)`` on ranks whose kernels run on the CPU."""
    return run_ranks(interpreting, ranks, fn, *args)


def interpreting(comm: Communicator, fn: Callable[..., Any], *args: Any) -> Any:
    """On a rank."""
    os.environ["TRITON_INTERPRET"] = "1"
    return fn(comm, *args)


def run_compiling(fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(comm, *args)`` in a process whose kernels are compiled, whatever this one's are."""
    return run_ranks(_compiling, 1, fn, *args, timeout=110)[0]


def _compiling(comm: Communicator, fn: Callable[..., Any], *args: Any) -> Any:
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        return fn(comm, *args)


@contextmanager
def without_kernels() -> Iterator[None]:
    """torch's operations in place of the kernels."""
    with mock.patch.dict(os.environ, {SWITCH: "0"}):
        yield


@dataclass(slots=True)
class Traffic:
    """What interpreted kernels read and write: bytes of memory, masked lanes left out.

    ``large`` are those launches that were given arrays large enough to count.
    """

    launches: int = 0
    large: int = 0
    bytes: int = 0
    names: list[str] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def enter(self, arguments: Iterable[Any], least: int) -> None:
        """A launch begins: accesses to arrays of at least so many bytes will count."""
        found = [array for array in arguments if isinstance(array, Tensor)]
        found += [array for each in arguments if isinstance(each, tuple) for array in each]
        sizes = ((array.data_ptr(), array.numel() * array.element_size()) for array in found)
        self.ranges = sorted({(at, at + size) for at, size in sizes if size >= least})
        self.large += bool(self.ranges)

    def count(self, ptrs: Any, mask: Any) -> None:
        """Some lanes load or store."""
        at = ptrs.data[mask.data]
        inside = sum(int(((at >= low) & (at < high)).sum()) for low, high in self.ranges)
        self.bytes += inside * ptrs.get_element_ty().primitive_bitwidth // 8


@contextmanager
def counted(least: int = 0) -> Iterator[Traffic]:
    """Count launches, and the bytes of loads and stores of arrays of at least ``least`` bytes."""
    from triton.runtime import interpreter

    traffic, builder = Traffic(), interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    run = interpreter.InterpretedFunction.run

    def counting_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        traffic.count(ptrs, mask)
        return load(self, ptrs, mask, *rest, **named)

    def counting_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.count(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def counting_run(self: Any, *args: Any, **named: Any) -> Any:
        traffic.launches += 1
        traffic.enter(args, least)
        traffic.names.append(self.fn.__name__)
        # the interpreter looks at arrays by torch's operations, which are none of the caller's
        with _disable_current_modes():
            return run(self, *args, **named)

    with (
        mock.patch.object(builder, "create_masked_load", counting_load),
        mock.patch.object(builder, "create_masked_store", counting_store),
        mock.patch.object(interpreter.InterpretedFunction, "run", counting_run),
    ):
        yield traffic


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes: registers of a thread, bytes spilled, shared bytes; its PTX."""

    registers: int
    spilled: int
    shared: int
    ptx: str = field(repr=False)


Types = Mapping[str, str | tuple[str, ...]]


def resources(
    kernel: Any,
    types: Types,
    constants: Mapping[str, Any],
    capability: int,
    **options: Any,
) -> Resources:
    """Compile a kernel for a GPU that need not be there.

    Args:
        kernel: the function under ``triton.jit``.
        types: Triton's names of the types of its arguments; pointers are taken for aligned ones,
            and numbers of type ``i32 16`` for multiples of 16.
        constants: its constants.
        capability: 80 or 90.
        options: warps and stages.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    aligned = [["tt.divisibility", 16]]
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, name in enumerate(names):
        kind = "constexpr" if name in constants else types[name]
        if isinstance(kind, tuple):
            attributes |= {(place, inner): aligned for inner in range(len(kind))}
        elif kind.startswith("*") or kind.endswith(" 16"):
            kind = kind.removesuffix(" 16")
            attributes[(place,)] = aligned
        signature[name] = kind
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = str(binary.asm["ptx"])
    registers, spilled = _assembled(ptx, capability)
    return Resources(registers, spilled, int(binary.metadata.shared), ptx)


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and bytes of spills, as Triton's own assembler reports them."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    architecture = "sm_90a" if capability == 90 else f"sm_{capability}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        call = [str(tools / "ptxas"), "-v", f"--gpu-name={architecture}", file.name]
        told = subprocess.run(
            [*call, "-o", os.devnull], check=True, capture_output=True, text=True
        ).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    if registers is None or not spills:
        raise ValueError(f"ptxas says something else than it did: {told}")
    return int(registers[1]), sum(map(int, spills))
