"""How much is tried: the same few examples in every ordinary run, random ones in ``make fuzz``."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

_EXAMPLES = int(os.environ.get("IGNN_FUZZ_EXAMPLES", "0"))
_HEADROOM = 3 * 2**30
_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]

settings.register_profile(
    "short",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=_CHECKS,
    phases=[Phase.explicit, Phase.generate],  # the seed is fixed: a failure repeats as it is
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=max(_EXAMPLES, 1),
    suppress_health_check=_CHECKS,
    print_blob=True,
)
settings.load_profile("long" if _EXAMPLES else "short")


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    """A reader that takes memory for what a file merely claims ends in an error, not in swap."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _HEADROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
