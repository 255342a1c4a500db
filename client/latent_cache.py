"""A site's images as latents: sums for the global scale, and all of them, kept on its disk."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.site import Site, site_log
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.sealed_tensors import load_tensors, save_tensors
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.inference.joint_model import restore_autoencoder
from mediffusion_core.messaging.protocol import EVALUATE, TRAIN_JOINT, WHITENING
from mediffusion_core.models import channel_sums, class_probabilities, untrained_codec
from mediffusion_core.models.class_means import ClassMeans, ClassSums
from mediffusion_core.models.whitening import FeatureSums, Whitening
from mediffusion_core.training.latent_files import LATENTS
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.latents import Seed, encode_images, encode_views
from mediffusion_core.training.public_features import public_features

StateDict = Mapping[str, Tensor]
SeedFor = Callable[[str, ImageSet], Seed]

IMAGES, CODEC = "images", "codec"
"""Digests beside the latents: of the encoded images, and of these with codec and settings."""
SUMMED = 128
UNLABELLED_VIEWS = 2
"""Random views of each unlabelled image that are kept for consistency training."""


@torch.no_grad()
def latent_sums(site: Site, weights: StateDict) -> dict[str, Tensor]:
    """Sums and sums of squares of the site's latents per channel, and how many values."""
    settings = site.settings
    autoencoder = restore_autoencoder(settings, weights).to(site.device).eval()
    images = site.dataset.train(site.index)
    channels = settings.model.autoencoder.latent_channels
    total, squares = torch.zeros(2, channels, dtype=torch.float64)
    count = 0
    parts = torch.arange(len(images)).split(SUMMED) if len(images) else ()
    for part in parts:
        sums = channel_sums(autoencoder, images.take(part).to(site.device))
        total, squares, count = total + sums[0].cpu(), squares + sums[1].cpu(), count + sums[2]
    return {"total": total, "squares": squares, "count": torch.tensor([float(count)])}


def encode(
    site: Site, codec_weights: StateDict, seed_for: SeedFor, whitening: StateDict | None = None
) -> None:
    """Encodes the site's images and keeps the latents in its folder.

    A second call with the same codec, images, labels and settings finds them there and does
    nothing; an image that became readable since, or a corrected label, makes all of them anew.

    Args:
        site: Whose images.
        codec_weights: Of the codec.
        seed_for: The seed of random views of some images, for a purpose.
        whitening: Of a public encoder's features, with a classifier of the whitened ones, where
            the run aligns with them or distils it.
    """
    settings = site.settings
    train, validation = site.dataset.train(site.index), site.dataset.validation(site.index)
    images = _digest_of_images(site)
    digests = {IMAGES: images, CODEC: _digest(site, codec_weights, whitening, images)}
    path = site.folder / LATENTS
    if _are_kept(path, digests, site):
        return
    codec = untrained_codec(settings.model.autoencoder, settings.data.channels)
    codec.load_state_dict(dict(codec_weights))
    codec.to(site.device)
    labelled, unlabelled = train.subset(train.labelled), train.subset(train.unlabelled)
    joint = settings.training.joint
    views = joint.augmented_views
    strong = UNLABELLED_VIEWS if joint.consistency.weight else 0
    report = site.progress("latents", 1)
    done, total = 0, len(train) + views * len(labelled) + strong * len(unlabelled)

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        report(done, total, float("nan"))

    def random_views(images: ImageSet, count: int, purpose: str, plain: bool) -> Tensor:
        return encode_views(
            codec,
            images,
            views=count,
            augmentation=settings.data.augmentation,
            seed=seed_for(purpose, images),
            plain=plain,
            on_batch=on_batch,
        )

    apart = settings.privacy.enabled
    latents = {
        "train": encode_images(codec, train, on_batch, apart=apart),
        "views": random_views(labelled, views, "views", plain=True),
        "validation": encode_images(codec, validation, apart=apart),
    }
    if strong:
        name = "unlabelled views"
        latents["unlabelled_views"] = random_views(unlabelled, strong, name, plain=False)
    if whitening is not None:
        latents |= _aligned_with(site, whitening, train)
    save_tensors(path, latents, digests)


def feature_sums(site: Site) -> dict[str, Tensor]:
    """Sums over a public encoder's features of the site's training images.

    With distillation also those over its labelled images, for each class.
    """
    train = site.dataset.train(site.index)
    features = _features(site, train)
    sums = FeatureSums.of(features, site.dataset.groups(train.rows)).arrays()
    distilled = site.settings.training.joint.alignment.distillation_weight > 0
    return sums | (ClassSums.of(features, train.targets).arrays() if distilled else {})


def _aligned_with(site: Site, whitening: StateDict, images: ImageSet) -> dict[str, Tensor]:
    """The directions (n, K) of images, and with distillation their soft targets (n, C)."""
    directions = Whitening.of_arrays(whitening)(_features(site, images))
    if not site.settings.training.joint.alignment.distillation_weight:
        return {"directions": directions.half()}
    logits = ClassMeans.of_arrays(whitening)(directions)
    soft = class_probabilities(logits, site.dataset.store.multi_label)
    return {"directions": directions.half(), "soft_targets": soft.half()}


def _features(site: Site, images: ImageSet) -> Tensor:
    """A public encoder's features (n, D) of some of the site's images."""
    settings, report = site.settings, site.progress("features", 1)
    return public_features(
        site.dataset,
        images.rows,
        settings.training.joint.alignment,
        site.device,
        lambda done, count: report(done, count, float("nan")),
    )


def kept_latents(site: Site) -> LatentSet:
    """The latents that `encode` kept, with the labels of the site's training images.

    Raises:
        UserError: if images, patients or labels are others than those that were encoded, or the
            latents are damaged.
    """
    kept = _load(site)
    return LatentSet(
        kept["train"],
        kept["views"],
        site.dataset.train(site.index).targets,
        site.dataset.store.multi_label,
        turns_and_flips(site.settings.data.augmentation),
        kept.get("unlabelled_views"),
        kept.get("directions"),
        kept.get("soft_targets"),
    )


def validation_latents(site: Site) -> Tensor:
    """Latents (n, c, h, w) that `encode` kept of the site's validation patients.

    Raises:
        UserError: as `kept_latents`.
    """
    return _load(site, ("validation",))["validation"]


def forget_after(site: Site, kind: str, round_number: int) -> None:
    """Deletes the latents after the last message of a run, where the policy keeps them no longer.

    A site that was not asked in the last round keeps them until they expire.
    """
    settings = site.settings
    last = EVALUATE if settings.sites_validate else TRAIN_JOINT
    ended = kind == last and round_number == settings.federation.num_rounds
    if ended and site.policy.keep_latents == "run":
        (site.folder / LATENTS).unlink(missing_ok=True)


def _are_kept(path: Path, digests: Mapping[str, str], site: Site) -> bool:
    """Whether the latents of these images and this codec are there and sound."""
    if not path.is_file():
        return False
    try:
        return load_tensors(path)[1] == digests
    except UserError as error:
        site_log(site.folder).warning("%s; the images are encoded again", error)
        return False


def _load(site: Site, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Latents, unless they would go with labels, or be charged to patients, of other images."""
    path = site.folder / LATENTS
    latents, digests = load_tensors(path, names)
    if digests.get(IMAGES) != _digest_of_images(site):
        raise UserError("the site's images or labels are not those that were encoded")
    path.touch()  # files that are in use do not expire
    return latents


def _digest(site: Site, codec: StateDict, whitening: StateDict | None, images: str) -> str:
    """Of all that a site's latents depend on: settings, codec, and which images and labels."""
    sha = hashlib.sha256(site.settings.fingerprint().encode())
    named = {f"{WHITENING}.{name}": value for name, value in (whitening or {}).items()}
    weights = {**codec, **named}
    for name in sorted(weights):
        sha.update(name.encode())
        sha.update(weights[name].contiguous().numpy().tobytes())
    sha.update(images.encode())
    return sha.hexdigest()


def _digest_of_images(site: Site) -> str:
    """Digest of the site's training and validation images: ids in order, patients and labels."""
    sha = hashlib.sha256()
    for images in (site.dataset.train(site.index), site.dataset.validation(site.index)):
        names = [site.dataset.store.image_ids[row] for row in images.rows]
        sha.update(json.dumps([names, site.dataset.groups(images.rows)]).encode())
        sha.update(images.targets.numpy().tobytes())
    return sha.hexdigest()
