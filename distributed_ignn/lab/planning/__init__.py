"""What a training run will cost on machines that are not at hand: seconds, bytes and memory."""
