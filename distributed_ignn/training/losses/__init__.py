"""What is minimised: the task's loss, consistency and regularisers."""
