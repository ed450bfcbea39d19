"""The long form of the fault campaign: ``python -m tests.faults --kills 200``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.faults.campaign import Campaign, as_json, show

# of all kills; what is left goes to torchrun
_RAY_SHARE, _RESIZE_SHARE = 0.25, 0.15


def main() -> int:
    """Exit code 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    parser.add_argument("--without-ray", action="store_true", help="only what torchrun can do")
    parser.add_argument("--folder", type=Path, help="where runs and logs stay (default: temporary)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        campaign = Campaign(options.folder or Path(temporary), options.seed, console.print)
        of_ray = 0 if options.without_ray else round(options.kills * _RAY_SHARE)
        of_resize = round(options.kills * _RESIZE_SHARE)
        outcomes = [
            campaign.torchrun(options.kills - of_ray - of_resize),
            campaign.resize(of_resize, with_ray=not options.without_ray),
        ]
        if of_ray:
            outcomes.append(campaign.ray(of_ray))
        fine = show(outcomes, console)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(outcomes), indent=2) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
