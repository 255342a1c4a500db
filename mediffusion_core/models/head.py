"""The classifier head: pooling of the UNet's maps, and its layers."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mediffusion_core.models.latent_statistics import PER_CHANNEL, latent_statistics
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
    of its hidden layer, scaled as in arXiv 1706.03762. It can weight the positions of a small
    finding more than the mean does. The queries start at zero, where it is the mean.
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


class Normalised(nn.Module):
    """Pooled features with mean 0 and variance 1 in each row.

    This is layer normalisation without gain and bias (arXiv 1607.06450). Maps of deep blocks are
    larger than those of the first ones by an amount that grows in training; the layers after this
    one do not have to follow it.
    """

    def __init__(self, pooling: nn.Module) -> None:
        """Takes the pooling of the maps."""
        super().__init__()
        self.pooling = pooling

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) to features (B, Σ C_i)."""
        pooled = self.pooling(maps)
        return nn.functional.layer_norm(pooled, pooled.shape[1:])


class StatisticsAndMaps(nn.Module):
    """Moments of the latent, and the pooled maps of the encoder.

    The pooled maps are divided by the root of their number, so that together they have about the
    norm of one moment. Private steps add noise to every weight, and its effect on the logits grows
    with the norm of the features.
    """

    def __init__(self, pooling: nn.Module) -> None:
        """Takes the pooling of the maps."""
        super().__init__()
        self.maps = pooling

    def forward(self, read: Sequence[Tensor]) -> Tensor:
        """The latent (B, c, h, w) and maps (B, C_i, h_i, w_i) to features (B, 5 c + Σ C_i)."""
        latents, *maps = read
        pooled = self.maps(maps)
        return torch.cat([latent_statistics(latents), pooled / pooled.shape[1] ** 0.5], dim=1)


class ClassifierHead(nn.Sequential):
    """Pooling, then dropout, linear, LeakyReLU, dropout, linear.

    Widths and layers are those of Mediffusion (arXiv 2411.09434). The layers are numbered from 0
    and mean pooling has no weights, so the names of weights do not depend on the pooling.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, settings: HeadSettings) -> None:
        """Takes the channels of all inputs, with `latent_statistics` those of the latent first."""
        latent, maps = (widths[:1], widths[1:]) if settings.latent_statistics else ((), widths)
        pooling: nn.Module = MeanPooling()
        if settings.pooling == "attention":
            pooling = AttentionPooling(maps)
        if settings.normalised:
            pooling = Normalised(pooling)
        layers = (
            nn.Dropout(settings.dropout),
            nn.Linear(PER_CHANNEL * sum(latent) + sum(maps), settings.hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, num_classes),
        )
        named = [(str(number), layer) for number, layer in enumerate(layers)]
        read = StatisticsAndMaps(pooling) if settings.latent_statistics else pooling
        super().__init__(OrderedDict([("pooling", read), *named]))
        self.reads_latents = settings.latent_statistics

    def pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) to features (B, Σ C_i), without those of the latent."""
        pooling = self.get_submodule("pooling.maps" if self.reads_latents else "pooling")
        pooled: Tensor = pooling(maps)
        return pooled
