"""What lies where in the folder of a run, and so below its URL."""

from __future__ import annotations

SETTINGS = "config.yaml"
RECORD = "shards.json"
KEPT_SOLVER = "solver.safetensors"
CHECKPOINTS, STATE = "checkpoints", "state.json"
SHARDS = "shards"
LOGS = "logs"
CRASHES, REPORT = "crash", "report.json"
