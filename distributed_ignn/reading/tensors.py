"""Tensors in the safetensors format, which holds numbers and text and nothing that runs."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from distributed_ignn.reading.plain_files import in_one_line, open_plain

#: The format allows 100 MB, which a parser turns into many times as much; ours have 50 kB.
_HEADER_LIMIT = 16 * 2**20


def read_tensors(
    path: Path, *, copy: bool, follow_links: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file by name, and its metadata.

    Args:
        path: of the file.
        copy: whether to copy them; else they stay memory-mapped until they are used.
        follow_links: whether ``path`` may be a symbolic link.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or damaged.
    """
    with open_plain(path, follow_links=follow_links) as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _HEADER_LIMIT:
        raise ValueError(f"its header claims {length:,} bytes, at most {_HEADER_LIMIT:,} are read")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, RuntimeError, TypeError, LookupError, OverflowError) as error:
        # the others: types and shapes that torch refuses
        raise ValueError(in_one_line(error)) from error
    return {k: v.clone() if copy else v for k, v in found.items()}, metadata
