"""Images that are one image: the same pixels, or so nearly that no split may separate them.

Two images are near duplicates where their perceptual hashes differ in at most `NEAR_BITS` bits and
their pixels correlate by at least `NEAR_CORRELATION`. The hash alone would not do: radiographs of
two patients often share it. The correlation ignores brightness and contrast, which
differ between copies that were stored again.
"""

import hashlib
import math

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEAR_BITS = 3
NEAR_CORRELATION = 0.995
_BANDS = NEAR_BITS + 1  # of 64 / 4 bits: hashes that differ in 3 bits agree in one of 4 bands
_BLOCK = 2**24  # pixel values of the pairs that are compared at once, 64 MB of float32 a side
_PLAIN = 1.0  # standard deviation in grey levels below which an image shows nothing to compare

Pairs = NDArray[np.int64]
"""(P, 2), the smaller index first, no pair twice."""


def find_duplicates(images: NDArray[np.uint8]) -> Pairs:
    """Exact and near duplicates among N images, uint8 (N, S, S, C).

    Of images with the same pixels each stands in one pair, with the first of them.
    """
    exact = exact_pairs(images)
    distinct = np.setdiff1d(np.arange(len(images)), exact[:, 1])
    near = near_pairs(images, distinct)
    return np.unique(np.concatenate([exact, near]), axis=0)


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """The 64-bit DCT hash of one image, uint8 (S, S, C)."""
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)
    bits: NDArray[np.bool_] = imagehash.phash(image).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def exact_pairs(images: NDArray[np.uint8]) -> Pairs:
    """Each image with the first one that has the same pixels, for N images (N, S, S, C)."""
    first: dict[bytes, int] = {}
    pairs = []
    for index, image in enumerate(images):
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        other = first.setdefault(digest, index)
        if other != index:
            pairs.append((other, index))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def near_pairs(images: NDArray[np.uint8], among: NDArray[np.int64]) -> Pairs:
    """Near duplicates among the chosen ones of the images (N, S, S, C)."""
    hashes = np.array([perceptual_hash(images[index]) for index in among], dtype=np.uint64)
    pairs = among[close_hashes(hashes)]  # (P, 2)
    block = max(1, _BLOCK // math.prod(images.shape[1:]))
    near = [
        correlations(images, pairs[start : start + block]) >= NEAR_CORRELATION
        for start in range(0, len(pairs), block)
    ]
    kept: Pairs = pairs[np.concatenate([np.empty(0, np.bool_), *near])]
    return kept


def close_hashes(hashes: NDArray[np.uint64]) -> Pairs:
    """Pairs of hashes that differ in at most `NEAR_BITS` bits.

    By the pigeonhole principle they agree in at least one band of 16 bits, so only images that
    share a band are compared.
    """
    found = []
    for band in range(_BANDS):
        part = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        part, ordered = part[order], hashes[order]
        left = np.arange(len(order) - 1)
        for shift in range(1, len(order)):
            left = left[left < len(order) - shift]
            left = left[part[left] == part[left + shift]]  # runs only get shorter
            if not len(left):
                break
            different = np.bitwise_count(ordered[left] ^ ordered[left + shift])
            near = left[different <= NEAR_BITS]
            found.append(np.stack([order[near], order[near + shift]], axis=1))
    pairs = np.concatenate([np.empty((0, 2), np.int64), *found])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def correlations(images: NDArray[np.uint8], pairs: Pairs) -> NDArray[np.float32]:
    """Pearson's correlation of the pixels of each pair (P,); -1 where one image is plain."""
    sides = (images[pairs[:, side]].reshape(len(pairs), -1) for side in (0, 1))
    first, second = (side - side.mean(axis=1, keepdims=True, dtype=np.float32) for side in sides)
    spread = first.std(axis=1), second.std(axis=1)
    product = (first * second).mean(axis=1) / np.maximum(spread[0] * spread[1], 1e-9)
    return np.where(np.minimum(*spread) < _PLAIN, -1.0, product)


def units(groups: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """Units that no split may separate: groups, joined where they share a duplicate.

    Args:
        groups: (N,) number of each image's patient or lesion, from 0.
        pairs: duplicates.

    Returns:
        (N,) number of each image's unit, from 0.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    links = groups[pairs]  # (P, 2)
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component[groups].astype(np.int64)
