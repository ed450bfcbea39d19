"""The epoch: model steps, solver phases, validation."""
