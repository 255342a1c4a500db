"""`fed-mediffusion site check`: checks of a site before it joins a federation."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deployment.check_output import report_checks
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import read_source
from mediffusion_core.data.checks.inspection import CheckResult
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.store.decoding import Decoder, create_array, decode_all
from mediffusion_core.data.store.prepared import default_store_folder
from mediffusion_core.privacy.ledger.site_ledger import site_secret
from mediffusion_core.settings.site_file import SiteFile

SAMPLED = 50
"""Images that are decoded as a test."""


def check_site(path: Path, image_size: int, channels: Literal[1, 3]) -> int:
    """Prints one result per line; returns 1 if the site is not ready, else 0.

    Raises:
        UserError: if the site file is wrong.
    """
    return report_checks(findings_of_site(path, image_size, channels))


def findings_of_site(path: Path, image_size: int, channels: Literal[1, 3]) -> Iterator[CheckResult]:
    """Checks a site file, and its device, data and store.

    Raises:
        UserError: if the site file is wrong.
    """
    site = SiteFile.read(path)
    yield CheckResult("ok", f"site file: {site.name}, {path}")
    yield CheckResult("ok", f"policy: {_policy(site)}")
    if site.data.classes is None:
        yield CheckResult("warning", "data.classes is missing; private runs need it")
    yield _result("device", lambda: str(resolve_device(site.policy.device)))
    try:
        source = read_source(site.data_settings(image_size, channels), 0, site_secret(site))
    except UserError as error:
        yield CheckResult("error", f"data: {error}")
        return
    yield _result("data", lambda: _data(source, image_size, channels))
    pixels = len(source.image_ids) * image_size**2 * channels
    yield _result("store", lambda: _store(site.data.store or default_store_folder(), pixels))


def _result(name: str, check: Callable[[], str]) -> CheckResult:
    """The text of a check, or its error."""
    try:
        return CheckResult("ok", f"{name}: {check()}")
    except UserError as error:
        return CheckResult("error", f"{name}: {error}")


def _policy(site: SiteFile) -> str:
    policy = site.policy
    needed = "privacy required" if policy.require_privacy else "runs without privacy allowed"
    epsilon = "no limit of ε" if policy.max_epsilon is None else f"ε at most {policy.max_epsilon:g}"
    noise = policy.min_noise_multiplier
    least = "no least noise" if noise is None else f"noise multiplier at least {noise:g}"
    approval = "each run" if policy.approval == "required" else "no run"
    kept = policy.keep_latents
    return (
        f"{needed}, {epsilon}, {least}, {len(policy.allowed_metrics)} metrics may leave, "
        f"{len(policy.allowed_settings)} settings are bounded, {approval} needs approval, latents "
        f"stay {'until the run ends' if kept == 'run' else f'{kept} days'}"
    )


def _data(source: Source, image_size: int, channels: int) -> str:
    chosen = tuple(range(0, len(source.image_ids), max(1, len(source.image_ids) // SAMPLED)))
    with TemporaryDirectory() as folder:
        target = Path(folder) / "sample.npy"
        create_array(target, (len(chosen), image_size, image_size, channels))
        decoder = Decoder(partial(_sampled, source.load, chosen), target)
        # As in a run: a broken image may end the decoding process, but not this one.
        bad = decode_all(decoder, len(chosen), None, None, source.isolated)
    if bad:
        position, reason = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(chosen)} sampled images can't be read: "
            f"{source.image_ids[chosen[position]]} ({reason})"
        )
    units, unit = len(set(source.groups)), source.names.unit
    grouped = "no patient named" if unit == "image" else f"of {units} {unit}s"
    return (
        f"{len(source.image_ids)} images, {grouped}, classes "
        f"{', '.join(source.classes)}; {len(chosen)} sampled images can be read"
    )


def _sampled(
    load: Callable[[int], NDArray[np.uint8]], chosen: Sequence[int], position: int
) -> NDArray[np.uint8]:
    return load(chosen[position])


def _store(folder: Path, pixels: int) -> str:
    needed = 2 * pixels  # bad images are removed by a second copy of the store
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    if free < needed:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")
    return f"{folder}, {free / 1e9:.1f} GB free, {needed / 1e9:.2f} GB needed"
