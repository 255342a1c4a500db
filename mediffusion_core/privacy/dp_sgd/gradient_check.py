"""Before the first private step: is each unit's gradient the one that autograd gives alone?

A per-sample gradient that is too short is clipped too little, and nothing else shows it. Opacus
1.6 computes such gradients for convolutions of channels-last activations, as diffusers' attention
leaves them behind, without an error (design, "Traps").
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mediffusion_core.privacy.dp_sgd.ghost_norms import lengths
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import TOLERANCE, B, UnitGradients


class WrongGradientError(Exception):
    """Per-unit gradients are not those of autograd: private training must not begin."""


def check_gradients(gradients: UnitGradients[B], batch: B, others: Iterable[B] = ()) -> float:
    """Compares per-unit gradients with looped autograd.

    A layer whose hook is wrong is wrong for any units. Rounding is not: where an activation is next
    to LeakyReLU's kink, a unit alone may have another slope than in its batch. So one batch may be
    off, if all of several others are right.

    Args:
        gradients: As the training that follows uses them: same hooks, same memory format. In fp32.
        batch: A few units' rows; nothing of them is kept.
        others: Other units' rows, looked at where the first are off.

    Returns:
        The largest relative error, of the others where the first batch is off.

    Raises:
        WrongGradientError: if an error is larger than 1e-3 and there are no others or one of theirs
            is, or if it is no number.
    """
    errors = [_largest_error(gradients, batch)]
    if TOLERANCE < errors[0] < math.inf:
        errors += [_largest_error(gradients, other) for other in others]
    looked_at = errors[1:] or errors
    if not all(error <= TOLERANCE for error in looked_at):  # also where one is no number
        raise WrongGradientError(
            f"per-unit gradients of {type(gradients.module).__name__} in mode {gradients.mode} are "
            f"off by {', '.join(f'{error:.1e}' for error in errors)}, allowed are {TOLERANCE:.0e}: "
            "clipping would not bound them, so nothing private is trained with this network and "
            "these versions"
        )
    return max(looked_at)


def _largest_error(gradients: UnitGradients[B], batch: B) -> float:
    """Of each unit's whole gradient vector, relative to its length.

    One parameter's error would mean nothing: the true gradient of attention's `to_k.bias` is 0.
    In mode `ghost`, where no unit's gradient is held, each norm is compared, and the clipped sum.
    """
    with _without_dropout(gradients.module):
        truth = torch.stack(
            [
                _vector(gradients.without_hooks(batch.take(one)))
                for one in torch.arange(len(batch)).split(1)
            ]
        )  # (n, P)
        norms = lengths(truth)  # (n,)
        # Of a unit that no loss reaches, the error is measured by the others' length.
        scale = norms.clamp(min=1e-3 * float(norms.max()) + 1e-30)
        if gradients.mode == "hooks":
            samples = gradients.samples(batch)
            found = torch.cat([one.flatten(1) for one in samples.values()], dim=1)  # (n, P)
            errors = lengths(found - truth) / scale
        else:
            errors = (gradients.norms(batch) - norms).abs() / scale
            clipped = _vector(gradients.clipped_sum(batch))
            shares = (gradients.bound / norms.clamp(min=1e-30)).clamp(max=1)
            expected = torch.einsum("n,np->p", shares.float(), truth)
            whole = lengths((clipped - expected)[None]) / lengths(expected[None]).clamp(min=1e-30)
            errors = torch.cat([errors, whole])
    return float(errors.max())


def _vector(by_parameter: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in by_parameter.values()])


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Dropout draws by row, so that a row alone would be another one than in its batch."""
    layers = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    rates = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate
