"""Fuzzing that follows the code: libFuzzer keeps an input that reaches a new branch of a reader.

    python -m tests.fuzz.coverage_guided [--seconds N] [--only TARGET] [--found FOLDER]

Needs the package atheris. Each reader of ``targets.py`` runs in a process of its own for N seconds,
under a limit of 4 GiB. An input that ends in anything but a refusal or a valid result is written to
FOLDER, and the exit code is 1. It then belongs into ``test_found.py``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

_MEMORY_MIB = 4096
_GZIPS = (".gz",)
_ZIPS = (".zip", ".npz", ".pt")


def main() -> int:
    """One process per target, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--found", type=Path, default=Path("runs/fuzz"), help="for the inputs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _fuzz(args.only, args.found, args.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in [args.only] if args.only else TARGETS:
        print(f"fuzzing {name} for {args.seconds} s ...", flush=True)
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.coverage_guided", "--child"]
        command += ["--only", name, "--found", str(args.found), "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print("  " + _outcome(done.stderr), flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout[-3_000:] + done.stderr[-3_000:])
    if failed:
        print(f"inputs that break {', '.join(failed)} are in {args.found}")
    return 1 if failed else 0


def _outcome(log: str) -> str:
    told = [line for line in log.splitlines() if line.startswith(("Done ", "#")) and "cov:" in line]
    return " ".join((told or ["no report"])[-1].split())


def _fuzz(name: str, found: Path, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["distributed_ignn", "yaml", "numpy.lib"]):
        from tests.fuzz.targets import TARGETS, check
    target = TARGETS[name]
    room = Path(tempfile.mkdtemp(prefix="ignn-fuzz-"))
    os.environ["XDG_CACHE_HOME"] = str(room / "cache")
    target.make(room)
    pack, seeds = _form(target.file, (room / target.file).read_bytes())
    corpus = room / "corpus"
    corpus.mkdir()
    for n, seed in enumerate(seeds):
        (corpus / str(n)).write_bytes(seed)
    found.mkdir(parents=True, exist_ok=True)
    prefix = f"{found}/{name.replace(' ', '-')}-"
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={prefix}"]
    options += [f"-rss_limit_mb={_MEMORY_MIB}", "-timeout=30", "-max_len=20000"]

    def one(data: bytes) -> None:
        check(target, room, pack(data))

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _form(file: str, valid: bytes) -> tuple[Callable[[bytes], bytes], list[bytes]]:
    """How an input becomes a file, and inputs that become valid ones.

    Archives are fuzzed inside, with checksums that fit: damage to their own bytes rarely gets past
    the first checksum. The first byte of an input names the member that the rest replaces.
    """
    if file.endswith(_GZIPS):
        return lambda data: gzip.compress(data, 1, mtime=0), [gzip.decompress(valid)]
    if not file.endswith(_ZIPS):
        return lambda data: data, [valid]
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    names = list(members)

    def packed(data: bytes) -> bytes:
        stream = io.BytesIO()
        changed = {names[data[0] % len(names)]: data[1:]} if data else {}
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in (members | changed).items():
                archive.writestr(name, content)
        return stream.getvalue()

    return packed, [bytes([n]) + content for n, content in enumerate(members.values())]


if __name__ == "__main__":
    sys.exit(main())
