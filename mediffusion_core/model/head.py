"""The classifier: what it takes from the maps of the UNet's encoder, and its layers."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mediffusion_core.settings import HeadSettings


class MeanPooling(nn.Module):
    """The mean of each map over its positions."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) to features (B, Σ C_i)."""
        return torch.cat([one.mean(dim=(2, 3)) for one in maps], dim=1)


class AttentionPooling(nn.Module):
    """A weighted mean of each map over its positions, with weights from a learned query.

    With x_p the C channels at position p and q the map's query

        z = Σ_p a_p x_p    a = softmax_p(q · x_p / √C)

    which is the pooling of arXiv 1802.04712, equations 7 and 8, with one linear score in the place
    of its hidden layer, scaled as in arXiv 1706.03762. A small finding need not drown in the mean.
    The queries start at zero, where all positions weigh the same: training begins with the mean.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        """Takes the channels of each map."""
        super().__init__()
        self.queries = nn.ParameterList(torch.zeros(width) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) to features (B, Σ C_i)."""
        return torch.cat(
            [_attend(one, query) for one, query in zip(maps, self.queries, strict=True)], dim=1
        )


def _attend(one: Tensor, query: Tensor) -> Tensor:
    positions = one.flatten(2)  # (B, C, P)
    scores = torch.einsum("c,bcp->bp", query, positions) / len(query) ** 0.5
    return torch.einsum("bp,bcp->bc", scores.softmax(dim=1), positions)


class ClassifierHead(nn.Sequential):
    """Pooling, then dropout, linear, LeakyReLU, dropout, linear.

    Widths and layers are the reference's (arXiv 2411.09434). The layers are numbered from 0 and
    pooling by the mean has no weights, so its weights have the same names as without a pooling.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, settings: HeadSettings) -> None:
        """Takes the channels of the maps that are pooled, and the number of classes."""
        attention = settings.pooling == "attention"
        layers = (
            nn.Dropout(settings.dropout),
            nn.Linear(sum(widths), settings.hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, num_classes),
        )
        named = [(str(number), layer) for number, layer in enumerate(layers)]
        pooling = AttentionPooling(widths) if attention else MeanPooling()
        super().__init__(OrderedDict([("pooling", pooling), *named]))
