"""Fixed-point solvers, the one loop that runs them, and their gradients."""
