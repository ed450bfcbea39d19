"""The commands of ``ignn``, in the order in which its help names them."""

COMMANDS = {
    "train": ("train", "train a model: alone, under torchrun or on a Ray cluster"),
    "predict": ("predict", "write the prediction of every node of a finished run"),
    "partition": ("partition", "divide a graph once, into shards that training reads"),
    "search": ("search", "find settings for a graph by validation, in a given time"),
    "tune": ("tune_solver", "fit the learned solver of a finished run again, without labels"),
    "benchmark": ("benchmark", "measure products, exchanges, epochs, solvers and codecs"),
    "scaling": ("scaling", "measure how training speeds up with ranks and slow links"),
    "plan": ("plan", "predict time and memory on machines that are not at hand"),
    "reproduce": (
        "reproduce",
        "repeat the paper's tables, figures and studies, or ours",
    ),
    "link": ("link", "run ranks with a slow network between two halves of them"),
}
"""Name, module of this package, and what it does."""
