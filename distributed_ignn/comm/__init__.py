"""Start and stop of the job, and everything that ranks send to each other."""
