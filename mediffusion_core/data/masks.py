"""Finds segmentation masks among images, by the names that data sets give them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from mediffusion_core.data.name_words import words_of

_STRONG = re.compile(
    r"(?:\w{3,})?(?:masks?|segmentations?|groundtruths?|superpixels?|labelmaps?)"
    r"|msks?|maskimages?|maskcol|labelcol|segmentationclass|segmentationobject"
)
"""Words that mean a mask by themselves."""

_WEAK = re.compile(
    r"segs?|segm|labels?|lbls?|gt|rois?|contours?|outlines?|annotations?|annos?|annotated|truth|manual"
    r"|segmented|masked|overlays?|heatmaps?|bbox(?:es)?|binary"
)
"""Words that mean a mask only if an image of the same name exists."""

_LESION = "lesion"
"""Counts as a weak word in a file's name. A folder of lesions is a class."""

_NOT_MASKS = re.compile(r"(?:with|without|no|non|not|un)(?:mask\w*)?|wear\w*|worn|face\w*")
"""Words that tell a face mask from a segmentation mask."""

_QUALIFIERS = {
    "left", "right", "l", "r", "lung", "lungs", "ground", "st", "nd", "rd", "th", "final", "all",
}  # fmt: skip
_IMAGE_WORDS = {
    "image", "images", "img", "im", "picture", "photo", "scan", "original", "orig", "raw", "input",
}  # fmt: skip
_SEPARATOR = re.compile(r"(?<=[^ _.\-(])[ _.\-(]")
DERIVED = 0.2
"""Share of a folder's images from which a common suffix is reported."""


def find_masks(images: Sequence[str], classes: Sequence[str] = ()) -> list[str]:
    """Returns the paths that are masks.

    A path is a mask if a folder in it is named as one (`masks/`), if a folder such as `labels/`
    mostly repeats the names of other images, or if its own name means a mask
    (`benign (1)_mask.png`) and its image exists.

    Args:
        images: relative paths, `/` between their parts.
        classes: folders with these names hold no masks.
    """
    in_folder = {path for path in images if any(map(_is_strong, _folders(path, classes)))}
    beside = _beside(set(images) - in_folder, classes)
    others = [path for path in images if path not in in_folder and path not in beside]
    keys = _Keys(path for path in others if not _means_mask(_words(path)))
    return [
        path
        for path in images
        if path in in_folder or path in beside or keys.have_image_of(path, classes)
    ]


def find_derived(images: Iterable[str]) -> dict[str, list[str]]:
    """Finds images that have the name of another image in their folder and a suffix.

    They may be views of one patient, or masks under a name that `find_masks` does not cover.

    Returns:
        For each suffix (such as `_overlay2`) the paths that have it. A suffix counts if at least a
        share `DERIVED` of its folder has it.
    """
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for path in images:
        folders[_parent(path)][PurePosixPath(path).stem] = path
    found: dict[str, list[str]] = defaultdict(list)
    for stems in folders.values():
        added: dict[str, list[str]] = defaultdict(list)
        for stem, path in stems.items():
            for place in _SEPARATOR.finditer(stem):
                rest = stem[place.start() :]
                if stem[: place.start()] in stems and any(map(str.isalpha, rest)):
                    added[rest].append(path)
        for rest, paths in added.items():
            if len(paths) >= max(2, DERIVED * len(stems)):
                found[rest] += paths
    return dict(found)


class _Keys:
    """Names of images without words such as `image` or `raw`, to compare names of masks with."""

    def __init__(self, images: Iterable[str]) -> None:
        self.by_folder: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        self.everywhere: set[tuple[str, ...]] = set()
        for path in images:
            self.by_folder[_parent(path)].add(_image_key(path))
            self.everywhere.add(_image_key(path))

    def have_image_of(self, path: str, classes: Sequence[str]) -> bool:
        """Whether the name of `path` means a mask whose image exists."""
        words = _words(path)
        if not _means_mask(words):
            return False
        beside = self.by_folder.get(_parent(path), set())
        candidates = _keys_of_image(words)
        if not candidates:  # `patient7/mask.png` beside `patient7/image.png`
            return bool(beside)
        in_class = any(folder in classes for folder in PurePosixPath(path).parts[:-1])
        is_sure = any(map(_STRONG.fullmatch, words)) and not in_class
        return any(key in beside or (is_sure and key in self.everywhere) for key in candidates)


def _keys_of_image(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Candidates for the image's name: all words, those before and those after the mask word."""
    first = next(index for index, word in enumerate(words) if _is_mask_word(word))
    found = []
    for part in (words, words[:first], words[first:]):
        left = [word for word in part if not _is_mask_word(word) and word not in _IMAGE_WORDS]
        found += [tuple(left), tuple(word for word in left if word not in _QUALIFIERS)]
    return [key for key in found if key]


def _beside(images: Iterable[str], classes: Sequence[str]) -> set[str]:
    """The images in folders such as `labels/` that mostly repeat the names of other images."""
    weak: dict[str, list[str]] = defaultdict(list)
    others: set[tuple[str, ...]] = set()
    for path in images:
        folders = _folders(path, classes)
        named = next((folder for folder in folders if _is_weak(folder)), None)
        if named is None:
            others.add(_image_key(path))
        else:
            weak[named].append(path)

    def has_namesake(path: str) -> bool:
        words = _words(path)
        keys = _keys_of_image(words) if _means_mask(words) else []
        return any(key in others for key in (_image_key(path), *keys))

    return {
        path
        for paths in weak.values()
        if 2 * sum(map(has_namesake, paths)) >= len(paths)
        for path in paths
    }


def _is_strong(folder: str) -> bool:
    words = words_of(folder)
    return any(map(_STRONG.fullmatch, words)) and not any(map(_NOT_MASKS.fullmatch, words))


def _is_weak(folder: str) -> bool:
    words = words_of(folder)
    return any(map(_WEAK.fullmatch, words)) and not any(map(_NOT_MASKS.fullmatch, words))


def _is_mask_word(word: str) -> bool:
    return word == _LESION or bool(_STRONG.fullmatch(word) or _WEAK.fullmatch(word))


def _means_mask(words: Sequence[str]) -> bool:
    return any(map(_is_mask_word, words)) and not any(map(_NOT_MASKS.fullmatch, words))


def _folders(path: str, classes: Sequence[str]) -> list[str]:
    return [folder for folder in PurePosixPath(path).parts[:-1] if folder not in classes]


def _words(path: str) -> list[str]:
    return words_of(PurePosixPath(path).stem)


def _image_key(path: str) -> tuple[str, ...]:
    return tuple(word for word in _words(path) if word not in _IMAGE_WORDS)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
