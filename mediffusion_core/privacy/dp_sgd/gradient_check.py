"""Check before the first private step: per-sample gradients equal those of autograd.

A per-sample gradient that is too short is clipped too little, without an error. Opacus 1.6 computes
such gradients for convolutions of channels-last activations, which diffusers' attention returns.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mediffusion_core.privacy.dp_sgd.layer_gradients import lengths
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import (
    TOLERANCE,
    B,
    PerSampleGradients,
    whole_norms,
)

SHARE = 0.01
"""Of a unit's whole norm, to which the norm that a parameter lacks is at least relative."""
SYNTHETIC_UNITS, SYNTHETIC_BATCHES = 3, 3
"""Random units per batch, and batches, on which a site checks its gradients."""


class WrongGradientError(Exception):
    """Per-sample gradients differ from those of autograd, so private training must not begin."""


def check_on_synthetic(gradients: PerSampleGradients[B], batch_of: Callable[[int], B]) -> None:
    """Compares per-sample gradients with looped autograd on random units instead of a site's.

    Args:
        gradients: The ones that training uses.
        batch_of: Makes the rows of `SYNTHETIC_UNITS` units from a seed.

    Raises:
        WrongGradientError: as `check_gradients`.
    """
    batches = (batch_of(seed) for seed in range(SYNTHETIC_BATCHES))
    check_gradients(gradients, next(batches), batches)


def check_gradients(gradients: PerSampleGradients[B], batch: B, others: Iterable[B] = ()) -> float:
    """Compares per-sample gradients with looped autograd.

    A wrong hook is wrong on every batch. Rounding is not: an activation next to LeakyReLU's kink
    may have one slope alone and another in its batch. One batch may therefore exceed the tolerance
    if all other batches keep it.

    Args:
        gradients: The ones that training uses: same hooks, same memory format, fp32.
        batch: Rows of a few units.
        others: Further batches, computed only if the first exceeds the tolerance.

    Returns:
        The largest relative error of the first batch, or of the others if the first exceeds the
        tolerance.

    Raises:
        WrongGradientError: if the first batch exceeds the tolerance of 1e-3, and there are no other
            batches or one of them exceeds it too; or if an error is not finite.
    """
    errors = [_largest_error(gradients, batch)]
    if TOLERANCE < errors[0] < math.inf:
        errors += [_largest_error(gradients, other) for other in others]
    decisive = errors[1:] or errors
    if not all(error <= TOLERANCE for error in decisive):  # also if one is NaN
        raise WrongGradientError(
            f"per-sample gradients of {type(gradients.module).__name__} are off by "
            f"{', '.join(f'{error:.1e}' for error in errors)}, allowed are {TOLERANCE:.0e}: "
            "clipping would not bound them; this network cannot be trained privately with these "
            "versions of PyTorch and Opacus"
        )
    return max(decisive)


def _largest_error(gradients: PerSampleGradients[B], batch: B) -> float:
    """The largest error of a unit's norms and of the clipped sum, relative to their lengths.

    The norm of a parameter may be too large, as that of terms that cancel is. An error to the other
    side is relative to a hundredth of the whole at least: the true gradient of attention's
    `to_k.bias` is 0.
    """
    with _without_dropout(gradients.module):
        alone = [
            gradients.by_autograd(batch.take(one)) for one in torch.arange(len(batch)).split(1)
        ]
        truth = {name: torch.stack([one[name] for one in alone]) for name in gradients.parameters}
        by_parameter = {name: lengths(samples) for name, samples in truth.items()}
        norms = whole_norms(by_parameter)  # (n,)
        # A unit without a loss has gradient 0; its error is relative to the longest gradient.
        scale = norms.clamp(min=1e-3 * float(norms.max()) + 1e-30)
        found = gradients.norms_by_parameter(batch)
        errors = [(whole_norms(found) - norms).abs() / scale]
        for name, parameter in gradients.parameters.items():
            missing = by_parameter[name] - found[parameter]
            errors.append(missing / torch.maximum(by_parameter[name], SHARE * scale))
        clipped = _vector(gradients.clipped_sum(batch))
        factors = gradients.factors(by_parameter)
        expected = _vector(
            {name: torch.einsum("n,n...->...", factors[name], truth[name]) for name in truth}
        )
        whole = lengths((clipped - expected)[None]) / lengths(expected[None]).clamp(min=1e-30)
    return float(torch.cat([*errors, whole]).max())


def _vector(by_parameter: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in by_parameter.values()])


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Turns dropout off: it would draw other masks for a row alone than in its batch."""
    layers = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    rates = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate
