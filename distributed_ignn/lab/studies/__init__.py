"""The paper's studies and the long-range study, each one function over training runs."""
