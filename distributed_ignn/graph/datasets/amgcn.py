"""The five citation and social graphs of the AM-GCN release, read from its own zip files.

Layout inside a zip: one folder with ``*.edge`` (two ids a line), ``*.feature`` (a dense text
matrix of 0 and 1), ``*.label``, ``train{20,40,60}.txt``, ``test{20,40,60}.txt`` and ``knn/cK.txt``.
The text matrix, up to 182 MB, is parsed once and kept sparse (``feature_text.py``).

CoraFull's own lists overlap: ``train60`` and ``test60`` share 12 nodes, ``train40`` and ``test40``
three. Such nodes are taken out of training. Nor does ``train60`` have 60 nodes of every class:
four classes are smaller, and some have up to 98.
"""

from __future__ import annotations

import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distributed_ignn.errors import UserError
from distributed_ignn.files import git_blob_id, sha256_file
from distributed_ignn.graph.data import CSRMatrix, GraphData, csr_from_edges
from distributed_ignn.graph.datasets.checks import brief, check_ids, way_out
from distributed_ignn.graph.datasets.download import cache_folder, fetch, read_member
from distributed_ignn.graph.datasets.feature_text import cached_features
from distributed_ignn.reading.archives import Limits, open_zip
from distributed_ignn.reading.plain_files import in_one_line

logger = logging.getLogger(__name__)

REPOSITORY = "github.com/zhumeiqiBUPT/AM-GCN"
NUM_VALIDATION = 500
KNN_RANGE = range(2, 10)

_URL = "https://github.com/zhumeiqiBUPT/AM-GCN/raw/master/data/"
_TEXT_LIMIT = 256 * 2**20
#: Texts of zeros shrink a thousandfold, so the limits on single members count, see their readers.
_LIMITS = Limits(total=16 * 2**30, members=1_000, free=4 * 2**30)


@dataclass(frozen=True, slots=True)
class Published:
    """A zip of the release, and what its published content is known by.

    Args:
        file: its name.
        sha256: of the content; None where it is not known.
        blob: its git blob id in the repository, likewise.
    """

    file: str
    sha256: str | None = None
    blob: str | None = None

    def problem(self, path: Path, digest: str) -> str | None:
        """How the file at ``path``, of that sha256, differs from the published one; None if not."""
        if self.sha256 is not None and digest != self.sha256:
            return f"sha256 {digest}"
        if self.blob is not None and (found := git_blob_id(path)) != self.blob:
            return f"git blob id {found}"
        return None


RELEASE: dict[str, Published] = {
    "citeseer": Published(
        "citeseer.zip", "6c9b798b2e659fd28a59fc60b667cc8650be00171712b5b0c64eddee48e112c7"
    ),
    "acm": Published("acm.zip", "99166d12818748c33ebfe752e6f03ada78b3be3465e419141ea78d65bdccc3f4"),
    "corafull": Published("coraml.zip", blob="26b34912cc4709ed51a9ca1a2f2affde2ee3a2fa"),
    "blogcatalog": Published(
        "BlogCatalog.zip", "200e37cb382ba1f75462978622cafd3f75ee69da34250b932e0c26215965dbd2"
    ),
    "flickr": Published(
        "flickr.zip", "3d5bf9dc20144ec079daac0c402ffcbb853c3f56f0cd70f429c628eb9c0ff18d"
    ),
}
"""The data sets of the release, by name."""


def load_amgcn(name: str, data_root: Path, *, label_rate: int = 60, knn: int = 0) -> GraphData:
    """One data set of the release with its own split; features are a CSRMatrix, not normalised.

    Validation nodes are the first 500 of ``numpy.random.default_rng(0).permutation(rest)``, rest
    being the sorted ids in neither train nor test.

    Args:
        name: a key of RELEASE.
        data_root: the zip lies in, or is downloaded to, ``data_root/am-gcn``.
        label_rate: 20, 40 or 60 training nodes per class.
        knn: K in 2..9 adds the release's K-nearest-neighbour graph as channel 1; 0 adds none.

    Nodes that are in both lists of the release are test nodes.

    Raises:
        UserError: a missing or damaged zip, or a K that the release does not have.
    """
    if knn and knn not in KNN_RANGE:
        raise UserError(f"data.knn: {name} comes with K = 2..9 (0 = off), not {knn}")
    published = RELEASE[name]
    path = data_root / "am-gcn" / published.file
    url, sha256, blob = _URL + published.file, published.sha256, published.blob
    fetch(url, path, source=REPOSITORY, sha256=sha256, blob=blob)
    try:
        digest = sha256_file(path)
        problem = published.problem(path, digest)
        if problem is not None:
            logger.warning("%s is not the published file (%s): results may differ", path, problem)
        with open_zip(path, _LIMITS) as archive:
            return _read(_Release(archive, path), name, digest, label_rate, knn)
    except (OSError, ValueError) as error:
        advice = way_out(error, "delete it to have it fetched again")
        raise UserError(f"{path} cannot be read ({brief(error)}); {advice}") from error


class _Release:
    """Members of one open zip, found by the end of their name whatever the folder is called."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path

    def member(self, ending: str) -> zipfile.ZipInfo:
        members = self.archive.infolist()
        # macOS adds a shadow of every file under this name.
        found = [
            info
            for info in members
            if info.filename.endswith(ending) and not info.filename.startswith("__MACOSX")
        ]
        if len(found) != 1:
            raise UserError(
                f"{self.path}: {len(found)} members end in {ending}, exactly one is needed; use "
                f"the zip of {REPOSITORY}"
            )
        return found[0]

    def integers(self, ending: str, columns: int) -> Tensor:
        """Whole numbers of a text member, int64 [rows, columns]."""
        info = self.member(ending)
        text = read_member(self.archive, info, _TEXT_LIMIT)
        try:
            table = np.loadtxt(io.BytesIO(text), dtype=np.int64, ndmin=2)
        except ValueError as error:
            raise UserError(
                f"{self.path}: {in_one_line(info.filename)} is not a table of ids ({brief(error)})"
            ) from error
        if table.shape[0] == 0 or table.shape[1] != columns:
            raise UserError(
                f"{self.path}: {in_one_line(info.filename)} has shape "
                f"{table.shape[0]} x {table.shape[1]}, {columns} column(s) and at least one row "
                "are needed"
            )
        return torch.from_numpy(table)

    def nodes(self, ending: str, num_nodes: int) -> Tensor:
        """Node ids of a split member, ascending."""
        ids = self.integers(ending, 1).flatten()
        check_ids(ids, num_nodes, f"{self.path}: {ending}")
        return torch.unique(ids)

    def graph(self, ending: str, num_nodes: int) -> CSRMatrix:
        """Symmetric adjacency of an edge member."""
        edges = self.integers(ending, 2)
        check_ids(edges, num_nodes, f"{self.path}: {ending}")
        return csr_from_edges(edges[:, 0], edges[:, 1], num_nodes)


def _read(release: _Release, name: str, digest: str, label_rate: int, knn: int) -> GraphData:
    labels = release.integers(".label", 1).flatten()
    n = labels.numel()
    folder = cache_folder(release.path.parent / ".cache", "am-gcn")
    features = cached_features(release.archive, release.member(".feature"), digest, folder)
    if features.num_rows != n:
        raise UserError(
            f"{release.path}: {features.num_rows} feature rows for {n} labels, each node needs one "
            f"of both; use the zip of {REPOSITORY}"
        )
    graphs = [release.graph(".edge", n)]
    if knn:
        graphs.append(release.graph(f"knn/c{knn}.txt", n))
    listed = release.nodes(f"/train{label_rate}.txt", n)
    test = release.nodes(f"/test{label_rate}.txt", n)
    train = listed[~torch.isin(listed, test)]
    if train.numel() < listed.numel():
        logger.warning(
            "%s: %d of the %d training nodes are in the test list of the release, too; they are "
            "left out of training",
            name,
            listed.numel() - train.numel(),
            listed.numel(),
        )
    return GraphData(
        name=name,
        graphs=tuple(graphs),
        features=features,
        labels=labels,
        num_classes=int(labels.max()) + 1,
        task="multiclass",
        train_nodes=train,
        val_nodes=validation_nodes(n, train, test),
        test_nodes=test,
    )


def validation_nodes(num_nodes: int, train: Tensor, test: Tensor) -> Tensor:
    """The release has no validation split: 500 of the remaining nodes, always the same ones."""
    rest = np.setdiff1d(np.arange(num_nodes), torch.cat([train, test]).numpy())
    chosen = np.random.default_rng(0).permutation(rest)[:NUM_VALIDATION]
    return torch.from_numpy(np.sort(chosen))
