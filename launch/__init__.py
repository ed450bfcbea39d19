"""Commands: train, partition, predict and benchmark."""
