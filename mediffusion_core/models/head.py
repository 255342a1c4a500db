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


class StandardStatistics(nn.Module):
    """Statistics of the latent, as contrasts near 0 whose deviations are near 1.

    For each channel, from those of `latent_statistics`:

        2 mean_X    2 (mean_C - mean_X)    2 log s_X + 1    2 log (s_C / s_X)
        2 log (d / s_X) + 1.5

    with s the deviations and d the mean difference of neighbours. The constants are round numbers.
    Contrasts are less correlated than the statistics, so that fewer steps of gradient descent reach
    all directions of the weights; a private step has the same noise in each of them.
    """

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) to features (B, 5 c)."""
        mean, middle, deviation, middle_deviation, difference = latent_statistics(latents).chunk(
            PER_CHANNEL, dim=1
        )  # (B, c) each
        contrasts = (
            mean,
            middle - mean,
            deviation + 0.5,
            middle_deviation - deviation,
            difference - deviation + 0.75,
        )
        return 2 * torch.cat(contrasts, dim=1)


class ClassifierHead(nn.Sequential):
    """Pooling, then dropout, linear, LeakyReLU, dropout, linear; or dropout and one linear layer.

    Widths and layers are those of Mediffusion (arXiv 2411.09434). The layers are numbered from 0
    and mean pooling has no weights, so the names of weights do not depend on the pooling. With
    `latent_statistics` it takes latents in place of maps.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, settings: HeadSettings) -> None:
        """Takes the channels of each input: of the latent alone, or of each map."""
        features = sum(widths) * (PER_CHANNEL if settings.latent_statistics else 1)
        layers: list[nn.Module] = [nn.Dropout(settings.dropout)]
        if settings.hidden:
            layers += [
                nn.Linear(features, settings.hidden),
                nn.LeakyReLU(0.2),
                nn.Dropout(settings.dropout),
            ]
        layers.append(nn.Linear(settings.hidden or features, num_classes))
        if not settings.hidden:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)  # a convex problem needs no random start
        named = [(str(number), layer) for number, layer in enumerate(layers)]
        super().__init__(OrderedDict([("pooling", _pooling(widths, settings)), *named]))
        self.reads_latents = settings.latent_statistics


def _pooling(widths: Sequence[int], settings: HeadSettings) -> nn.Module:
    if settings.latent_statistics:
        return StandardStatistics()
    attends = settings.pooling == "attention"
    pooling = AttentionPooling(widths) if attends else MeanPooling()
    return Normalised(pooling) if settings.normalised else pooling
