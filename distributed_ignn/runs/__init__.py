"""One run on disk: its output folder, checkpoints, memory, prediction and tuning."""
