"""What holds the optimiser and steps it: plain torch or DeepSpeed."""
