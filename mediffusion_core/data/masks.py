"""Which pictures of a folder are masks of others, by how data sets name them."""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

FOLDERS = re.compile(
    r"((?!with|no).*(masks|segmentations?|groundtruths?|superpixels|annotations)"
    r"|(manual|left|right|binary|lung|lesion)?mask|segs?|maskimages|segmentationclass)"
)
"""Names of folders that hold masks alone, in small letters and digits."""

FOLDERS_BESIDE = {"label", "labels", "gt", "roi", "rois", "contours", "outlines", "labelmaps"}
"""Names of folders that hold masks where another folder has images of the same names."""

_WORDS = (
    "masks?|seg|segmentations?|segmented|groundtruth|gt|annotations?|superpixels|labels?|rois?"
    "|contours?|lesion"
)
_AFTER = re.compile(rf"(.*[^ _.\-])(?:[ _.\-]+(?:{_WORDS})|(?<=[a-z0-9])Mask)(?:[ _.\-]*\d+)?$")
_BEFORE = re.compile(rf"(?:{_WORDS})[ _.\-]+(.+)$")


def find_masks(images: Sequence[str], classes: Sequence[str] = ()) -> list[str]:
    """The masks among some pictures.

    A picture is a mask if its folder has the name of one (`masks/`), or if its own name has
    (`benign (1)_mask.png`) and the image that the mask would belong to exists.

    Args:
        images: relative paths, `/` between their parts.
        classes: folders with these names hold no masks.
    """
    in_folder = {path for path in images if _folder(path, classes, FOLDERS.fullmatch)}
    beside = {path for path in images if _folder(path, classes, FOLDERS_BESIDE.__contains__)}
    stems = {_stem(path) for path in images if path not in in_folder and path not in beside}
    return [
        path
        for path in images
        if path in in_folder
        or (path in beside and _stem(path) in stems)
        or any(image in stems for image in _images_of(path))
    ]


def _folder(path: str, classes: Sequence[str], says: Callable[[str], object]) -> bool:
    folders = [folder for folder in PurePosixPath(path).parts[:-1] if folder not in classes]
    return any(says(re.sub(r"[^a-z0-9]", "", folder.lower())) for folder in folders)


def _stem(path: str) -> str:
    return PurePosixPath(path).stem.casefold()


def _images_of(path: str) -> list[str]:
    """Names that the image of a mask may have; empty if the picture's name is not a mask's."""
    stem = PurePosixPath(path).stem
    found = [match[1]] if (match := _BEFORE.fullmatch(stem.lower())) else []
    while match := _AFTER.fullmatch(stem) or _AFTER.fullmatch(stem.lower()):
        stem = match[1]
        found.append(stem.casefold())
    return found
