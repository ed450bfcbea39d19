"""ACM-GCN: Luan et al. 2022, "Revisiting Heterophily for Graph Neural Networks", section 5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_ignn.config import ExplicitConfig, ModelConfig
from distributed_ignn.models.kinds.base import Columns, ExplicitModel, Site, affine, without_map

_CHANNELS = 3  # low-pass, high-pass, identity; also the temperature of their mixture


class ChannelMixing(nn.Module):
    """Weights of the three channels of every node, from what the channels say of it.

    a_c = sigmoid(H_c w_c), and the weights are softmax([a_1, a_2, a_3] W / 3) (their eq. 5).

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Parameter(nn.init.xavier_uniform_(torch.empty(_CHANNELS, width)))
        self.mix = nn.Parameter(nn.init.xavier_uniform_(torch.empty(_CHANNELS, _CHANNELS)))

    def forward(self, channels: Tensor) -> Tensor:
        """The mixture [O, D] of channels [O, 3, D]."""
        scores = torch.sigmoid((channels * self.score).sum(dim=2))
        shares = torch.softmax(scores @ self.mix / _CHANNELS, dim=1)
        return (channels * shares[:, :, None]).sum(dim=1)


class ACMGCN(ExplicitModel):
    """Each layer mixes relu(A_hat H W_1), relu((I - A_hat) H W_2) and relu(H W_3) node by node.

    A head follows. In the authors' code the last of these layers has the classes as its columns,
    and X is dropped as states are, which is ``model.input_dropout`` here and is off by default.
    """

    summary = "low-pass, high-pass and identity, mixed by each node (Luan et al. 2022)"
    reads = frozenset({"layers"})

    def build(self, site: Site) -> None:
        """See ``ExplicitModel``."""
        from torch_geometric.nn import GCNConv

        width, wide = site.hidden, _CHANNELS * site.hidden
        self.first = self.map_features(wide)
        self.maps = nn.ModuleList(
            nn.Linear(width, wide, bias=False) for _ in range(site.layers - 1)
        )
        self.mixing = nn.ModuleList(ChannelMixing(width) for _ in range(site.layers))
        self.spread = without_map(GCNConv(2 * width, 2 * width, bias=False))
        self.head = nn.Linear(width, site.classes)

    def forward(self, step: int | None) -> Tensor:
        """See ``ExplicitModel``; [O, D]."""
        x = self._mixed(self.first(step), 0)
        for place, layer in enumerate(self.maps):
            x = self._mixed(layer(self.drop(x, step, place)), place + 1)
        return x

    def _mixed(self, mapped: Tensor, layer: int) -> Tensor:
        """[O, D] of H W_1, H W_2 and H W_3 side by side, [O, 3 D]."""
        low, high, own = mapped.tensor_split(_CHANNELS, dim=1)
        near = self.spread(torch.cat([low, high], dim=1))
        spread_low, spread_high = near.tensor_split(2, dim=1)
        channels = torch.relu(torch.stack([spread_low, high - spread_high, own], dim=1))
        mixed: Tensor = self.mixing[layer](channels)
        return mixed

    @classmethod
    def columns(cls, model: ModelConfig, explicit: ExplicitConfig, classes: int) -> Columns:
        """See ``ExplicitModel``."""
        # of each layer its channels after relu, their sum and what is dropped of it are kept; the
        # mapped, spread, stacked and weighted channels of one layer are there at a time
        width, layers = model.hidden, explicit.layers
        mixing = _CHANNELS * (width + _CHANNELS)
        return Columns(
            rows=(8 * layers + 16) * width,
            first=_CHANNELS * width,
            weights=(layers - 1) * _CHANNELS * width**2 + layers * mixing + affine(width, classes),
            sent=2 * width,
        )
