"""Who starts the ranks: torchrun, Ray Train, or this process itself."""
