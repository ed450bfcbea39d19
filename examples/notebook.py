# %% [markdown]
# # Train on a graph in memory and use what was trained
#
# The cells below are a notebook in percent format: an editor runs them one by one, and
# `python examples/notebook.py` runs them all. A cell may be run again: each `fit` gets a fresh
# folder under `runs/`.

# %%
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import RandomNodeSplit
from torch_geometric.utils import stochastic_blockmodel_graph, subgraph

import distributed_ignn as di

COMMUNITIES, SIZE = 4, 60


def make_graph(seed: int) -> Data:
    """Communities whose nodes show their class through noise, split at random."""
    torch.manual_seed(seed)
    odds = torch.full((COMMUNITIES, COMMUNITIES), 0.003).fill_diagonal_(0.12)
    y = torch.arange(COMMUNITIES).repeat_interleave(SIZE)
    x = torch.nn.functional.one_hot(y, COMMUNITIES) + torch.randn(y.numel(), COMMUNITIES)
    edge_index = stochastic_blockmodel_graph([SIZE] * COMMUNITIES, odds)
    data = Data(x=x, edge_index=edge_index, y=y)
    return RandomNodeSplit(num_val=0.2, num_test=0.4)(data)


data = make_graph(seed=0)
data

# %% [markdown]
# Settings are those of `ignn train --help`, by short names where these are clear.

# %%
run = di.fit(data, hidden=16, epochs=40, lr=0.01, dropout=0.2)
run

# %% [markdown]
# The same line on two processes of this machine: the graph is divided between them, and the result
# is the same up to rounding.

# %%
two = di.fit(data, hidden=16, epochs=40, lr=0.01, dropout=0.2, ranks=2)
assert torch.equal(two.predict().labels, run.predict().labels)

# %% [markdown]
# `history` has a record per epoch; `pandas.DataFrame(run.history)` is a table of them.

# %%
run.history[-1]

# %%
run.plot_convergence(run.path / "convergence.png")

# %% [markdown]
# Rows are in the order of the data. The prediction says how far its solve has come.

# %%
out = run.predict(tolerance=1e-6)
z = run.embeddings()
accuracy = float((out.labels == data.y)[data.test_mask].float().mean())
out

# %% [markdown]
# Another graph with the same features is solved anew with the same weights; it needs no labels.

# %%
other = make_graph(seed=1)
seen = torch.arange(150)
edge_index, _ = subgraph(seen, other.edge_index, num_nodes=other.num_nodes)
part = Data(x=other.x[seen], edge_index=edge_index)
on_other = float((run.predict(part).labels == other.y[seen]).float().mean())

# %% [markdown]
# A run is its folder: it is there after this process has ended, also for `ignn predict`.

# %%
again = di.load(run.path)
assert torch.equal(again.predict(tolerance=1e-6).labels, out.labels)

# %%
if __name__ == "__main__":
    print(run)
    print(out)
    print(f"test accuracy {accuracy:.2f}, embeddings {tuple(z.shape)}, other graph {on_other:.2f}")
