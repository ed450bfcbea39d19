"""Generated datasets and the computed neighbour channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from distributed_ignn.config import (
    ChainsConfig,
    DataConfig,
    HeterophilousConfig,
    PartitionConfig,
    SyntheticConfig,
)
from distributed_ignn.errors import UserError
from distributed_ignn.graph.data import CSRMatrix, GraphData, is_symmetric
from distributed_ignn.graph.datasets import knn as knn_module
from distributed_ignn.graph.datasets import load_dataset
from distributed_ignn.graph.datasets.chains import make_chains
from distributed_ignn.graph.datasets.heterophilous import make_heterophilous
from distributed_ignn.graph.datasets.knn import cosine_knn
from distributed_ignn.graph.datasets.nested import Tree, draw_pairs
from distributed_ignn.graph.datasets.synthetic import make_products
from distributed_ignn.graph.partitioning.metis import is_installed
from distributed_ignn.graph.partitioning.partition import assign_parts

needs_pymetis = pytest.mark.skipif(not is_installed("pymetis"), reason="pymetis is not installed")


def _neighbour_mean(data: GraphData) -> torch.Tensor:
    graph = data.graphs[0]
    ones = np.ones(graph.num_entries, np.float32)
    n = data.num_nodes
    matrix = sp.csr_array((ones, graph.col.numpy(), graph.rowptr.numpy()), (n, n))
    assert isinstance(data.features, torch.Tensor)
    mean = matrix @ data.features.numpy() / np.maximum(1, np.diff(graph.rowptr.numpy()))[:, None]
    return torch.from_numpy(mean).float()


def _nearest_class_accuracy(features: torch.Tensor, data: GraphData) -> float:
    train, test = data.train_nodes, data.test_nodes
    sums = torch.zeros(data.num_classes, features.shape[1])
    sums.index_add_(0, data.labels[train], features[train])
    counts = torch.bincount(data.labels[train], minlength=data.num_classes).clamp_min(1)
    predicted = torch.cdist(features[test], sums / counts[:, None]).argmin(1)
    return float((predicted == data.labels[test]).float().mean())


def test_chains_are_separate_lines() -> None:
    data = make_chains(ChainsConfig(length=5, chains_per_class=3, classes=2))
    dense = data.graphs[0].to_dense()
    assert data.num_nodes == 30
    expected = torch.zeros(30, 30, dtype=torch.float64)
    for chain in range(6):
        for step in range(4):
            a = 5 * chain + step
            expected[a, a + 1] = expected[a + 1, a] = 1
    assert torch.equal(dense, expected)


def test_only_the_first_node_of_a_chain_tells_its_class() -> None:
    data = make_chains(ChainsConfig(length=4, chains_per_class=2, classes=3, features=7))
    assert isinstance(data.features, CSRMatrix)
    features = data.features.to_dense()
    assert data.labels.tolist() == [c for c in range(3) for _ in range(8)]
    first = torch.arange(0, 24, 4)
    assert features.sum() == first.numel()
    assert torch.equal(features[first].argmax(1), data.labels[first])
    assert features.shape == (24, 7)


def test_chain_noise_is_added_to_the_class_signal() -> None:
    settings = {"length": 10, "chains_per_class": 20, "features": 50}
    clean = make_chains(ChainsConfig(**settings)).features
    noisy = make_chains(ChainsConfig(**settings, noise=0.3)).features
    assert isinstance(clean, CSRMatrix)
    assert isinstance(noisy, torch.Tensor)
    noise = noisy - clean.to_dense(torch.float32)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(noise.mean())) < 0.01


def test_chain_split_sizes_and_seed() -> None:
    def split(seed: int) -> tuple[list[int], ...]:
        data = make_chains(ChainsConfig(chains_per_class=50, seed=seed))
        return tuple(x.tolist() for x in (data.train_nodes, data.val_nodes, data.test_nodes))

    one, again, other = split(1), split(1), split(2)
    assert [len(part) for part in one] == [100, 200, 1700]
    assert sorted(one[0] + one[1] + one[2]) == list(range(2000))
    assert one == again
    assert one != other


def test_chains_too_few_for_a_split_are_refused(tmp_path: Path) -> None:
    tiny = DataConfig(chains=ChainsConfig(length=2, chains_per_class=1))
    with pytest.raises(UserError, match="split is empty"):
        load_dataset("chains", tmp_path, tiny)


def _class_steps(data: GraphData) -> torch.Tensor:
    """How far the classes of two neighbours lie apart on the ring, one number an entry."""
    graph = data.graphs[0]
    step = data.labels[graph.rows()] - data.labels[graph.col.long()]
    return step.remainder(data.num_classes)


@pytest.mark.parametrize(
    ("homophily", "classes", "degree"), [(0.1, 5, 10.0), (0.5, 2, 6.0), (0.0, 3, 4.0), (1.0, 4, 5)]
)
def test_a_heterophilous_graph_is_what_its_settings_say(
    homophily: float, classes: int, degree: float
) -> None:
    settings = {"nodes": 1001, "classes": classes, "mean_degree": degree, "homophily": homophily}
    data = make_heterophilous(HeterophilousConfig(**settings))
    assert data.num_nodes == 1001
    assert data.num_undirected_edges == pytest.approx(1001 * degree / 2, abs=1)
    assert is_symmetric(data.graphs[0])
    steps = _class_steps(data)
    assert float((steps == 0).double().mean()) == pytest.approx(homophily, abs=0.01)
    # no edge leaves the ring, and all classes lie on it
    assert set(steps.tolist()) <= {0, 1, classes - 1}
    assert torch.bincount(data.labels).tolist() == [
        -(-(1001 - c) // classes) for c in range(classes)
    ]
    sizes = [x.numel() for x in (data.train_nodes, data.val_nodes, data.test_nodes)]
    assert sizes == [200, 200, 601]


def test_own_features_tell_a_class_as_well_as_the_signal_says() -> None:
    def accuracy(signal: float, neighbours: bool = False) -> float:
        data = make_heterophilous(HeterophilousConfig(signal=signal))
        assert isinstance(data.features, torch.Tensor)
        features = _neighbour_mean(data) if neighbours else data.features
        return _nearest_class_accuracy(features, data)

    weak, usual, strong = (accuracy(signal) for signal in (0.0, 1.0, 4.0))
    assert weak == pytest.approx(0.2, abs=0.05)
    assert weak + 0.1 < usual < strong - 0.3
    # neighbours are of other classes, and tell it nevertheless
    assert accuracy(1.0, neighbours=True) > usual + 0.1


def test_a_heterophilous_graph_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    def fingerprint(seed: int) -> str:
        settings = HeterophilousConfig(nodes=200, seed=seed)
        return load_dataset(
            "heterophilous", tmp_path, DataConfig(heterophilous=settings)
        ).fingerprint()

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nodes": 30}, "nodes = 30 are too few for classes = 5; use at least 50"),
        ({"mean_degree": 800.0}, "asks for more than half of all pairs of nodes = 3000"),
        ({"train_fraction": 0.9}, "leave no test nodes"),
    ],
)
def test_heterophilous_graphs_that_cannot_be_are_refused(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HeterophilousConfig.model_validate(settings)


@pytest.mark.parametrize("scale", [0.0005, 0.002])
def test_products_keep_the_statistics(tmp_path: Path, scale: float) -> None:
    data = load_dataset(
        "synthetic-products", tmp_path, DataConfig(synthetic=SyntheticConfig(scale=scale))
    )
    n = round(2_449_029 * scale)
    assert data.num_nodes == n
    assert data.num_undirected_edges == pytest.approx(61_859_140 * scale, rel=0.03)
    assert (data.num_features, data.num_classes) == (100, 47)
    assert isinstance(data.features, torch.Tensor)
    assert data.features.dtype == torch.float32
    sizes = np.array([x.numel() for x in (data.train_nodes, data.val_nodes, data.test_nodes)])
    assert sizes.sum() == n
    assert np.abs(sizes - scale * np.array([196_615, 39_323, 2_213_091])).max() <= 1.5
    assert torch.unique(data.labels).numel() == 47
    assert is_symmetric(data.graphs[0])


def test_products_degrees_are_heavy_tailed() -> None:
    data = make_products(SyntheticConfig(scale=0.01))
    degree = data.graphs[0].rowptr.diff().double()
    assert float(degree.mean()) == pytest.approx(50.5, rel=0.03)
    assert float(degree.median()) < 0.75 * float(degree.mean())
    assert float(degree.max()) > 15 * float(degree.mean())
    flat = make_products(SyntheticConfig(scale=0.01, exponent=6.0))
    assert int(flat.graphs[0].rowptr.diff().max()) < 0.5 * float(degree.max())


def test_products_edges_stay_inside_classes_as_asked() -> None:
    def inside(homophily: float) -> float:
        data = make_products(SyntheticConfig(scale=0.01, homophily=homophily))
        graph = data.graphs[0]
        same = data.labels[graph.rows()] == data.labels[graph.col]
        return float(same.float().mean())

    # A third of the edges that leave their community stay in the class: groups are wider.
    assert 0.72 < inside(0.8) < 0.92
    assert 0.35 < inside(0.2) < 0.6


def test_products_neighbours_tell_more_than_features() -> None:
    data = make_products(SyntheticConfig(scale=0.005))
    assert isinstance(data.features, torch.Tensor)
    alone = _nearest_class_accuracy(data.features, data)
    with_graph = _nearest_class_accuracy(_neighbour_mean(data), data)
    assert alone > 2 / 47
    assert with_graph > alone + 0.3


def test_products_depend_on_the_seed_only() -> None:
    prints = [make_products(SyntheticConfig(scale=0.0005, seed=s)).fingerprint() for s in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_products_node_order_hides_the_communities() -> None:
    data = make_products(SyntheticConfig(scale=0.001))
    assert float((data.labels[1:] == data.labels[:-1]).float().mean()) < 0.2


def test_products_communities_can_be_cut() -> None:
    data = make_products(
        SyntheticConfig(scale=0.002, classes=2, communities=4, homophily=0.95, features=3)
    )
    graph = data.graphs[0]
    crossing = data.labels[graph.rows()] != data.labels[graph.col]
    assert float(crossing.float().mean()) < 0.05
    assert data.num_features == 3


@pytest.mark.parametrize(("mean_degree", "expected"), [(10.0, 10.0), (0.0, 50.5)])
def test_products_mean_degree_can_be_chosen(mean_degree: float, expected: float) -> None:
    data = make_products(SyntheticConfig(scale=0.005, mean_degree=mean_degree))
    degree = data.graphs[0].rowptr.diff().double()
    assert float(degree.mean()) == pytest.approx(expected, rel=0.01)
    assert float(degree.max()) > 15 * float(degree.mean())


def test_products_full_size_has_the_published_split() -> None:
    from distributed_ignn.graph.datasets.synthetic import _split

    sizes = [part.numel() for part in _split(2_449_029, SyntheticConfig(scale=1.0))]
    assert sizes == [196_615, 39_323, 2_213_091]


@needs_pymetis
def test_products_communities_are_nested() -> None:
    """Wider groups exist: METIS finds a cut far below that of one level of communities."""
    data = make_products(SyntheticConfig(scale=0.02))
    found = assign_parts(data.graphs, 2, PartitionConfig(objective="cut")).stats
    assert 0.02 < found.cut_entries / found.entries < 0.08
    assert 0.15 < found.halo_rows_largest / found.nodes < 0.4
    eight = assign_parts(data.graphs, 8, PartitionConfig(objective="cut")).stats
    # with communities in one whole graph, 0.3 of the edges leave, and 7/8 of these would be cut
    assert eight.cut_entries / eight.entries < 0.2


def test_pairs_keep_the_degrees_and_the_levels() -> None:
    rng = np.random.default_rng(0)
    tree = Tree(np.full(64, 50))
    assert [bounds.size - 1 for bounds in tree.bounds] == [64, 23, 8, 3, 1]
    degree = np.full(3200, 8.0, np.float32)
    pairs = list(draw_pairs(rng, tree, degree, 0.5))
    low, high = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    ends = np.bincount(low, minlength=3200) + np.bincount(high, minlength=3200)
    assert float(ends.mean()) == pytest.approx(8.0, rel=0.02)
    assert float(np.mean(low // 50 == high // 50)) == pytest.approx(0.59, abs=0.04)
    # a node that does not reach the whole graph has no edge there, so most have none
    far = tree.bounds[-2].searchsorted(low, "right") != tree.bounds[-2].searchsorted(high, "right")
    assert np.unique(np.concatenate([low[far], high[far]])).size < 0.45 * 3200


def test_products_scale_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"scale: 1e-05 gives 24 nodes.*use at least 4e-05"):
        make_products(SyntheticConfig(scale=1e-5))


def _naive_knn(features: np.ndarray, k: int) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    similar = np.round(unit @ unit.T, 6)
    n = len(features)
    adjacency = np.zeros((n, n))
    for i in range(n):
        others = sorted((-similar[i, j], j) for j in range(n) if j != i and similar[i, j] > 0)
        for _, j in others[:k]:
            adjacency[i, j] = adjacency[j, i] = 1
    return adjacency


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_knn_agrees_with_the_definition(
    monkeypatch: pytest.MonkeyPatch, sparse: bool, block_bytes: int
) -> None:
    generator = np.random.default_rng(3)
    features = (generator.random((40, 6)) < 0.4) * generator.integers(1, 3, (40, 6))
    features[7] = 0
    monkeypatch.setattr(knn_module, "_BLOCK_BYTES", block_bytes)
    given: CSRMatrix | torch.Tensor = torch.from_numpy(features.astype(np.float32))
    if sparse:
        csr = sp.csr_array(features.astype(np.float32))
        rowptr, col = (torch.from_numpy(a.astype(np.int64)) for a in (csr.indptr, csr.indices))
        given = CSRMatrix(rowptr, col, torch.from_numpy(csr.data), 6)
    result = cosine_knn(given, 4).to_dense().numpy()
    assert np.array_equal(result, _naive_knn(features.astype(np.float64), 4))
    assert result[7].sum() == 0


def test_knn_is_added_where_no_ready_graph_exists(tmp_path: Path) -> None:
    settings = ChainsConfig(length=5, chains_per_class=4, noise=0.1, train_fraction=0.2)
    data = load_dataset("chains", tmp_path, DataConfig(knn=3, chains=settings))
    assert len(data.graphs) == 2
    assert int(data.graphs[1].rowptr.diff().min()) >= 3
    assert is_symmetric(data.graphs[1])


def test_knn_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"5 neighbours are not possible among 5 nodes"):
        cosine_knn(torch.eye(5), 5)
    monkeypatch.setattr(knn_module, "MAX_NODES", 100)
    with pytest.raises(UserError, match="4,000 nodes are too many"):
        load_dataset("chains", tmp_path, DataConfig(knn=3))
