"""Our name of a split from the name in a data set, such as `Training/`, `test_set/` or `val`."""

import re

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.name_words import words_of

_STEMS = {
    "train": ("train", "trains", "training", "trn"),
    "validation": ("val", "valid", "validation", "validate", "validating", "dev", "development"),
    "test": ("test", "tests", "testing", "tst", "holdout"),
}
_SHORT = {"tr": "train", "ts": "test", "te": "test", "vl": "validation"}
"""Of a split where nothing but a filler stands beside, as in `imagesTr`."""
_UNCLEAR = {"eval", "evaluation", "tuning", "unseen", "trainval"}
"""One set calls its validation so, another its test."""

_SPLITS = {stem: split for split, stems in _STEMS.items() for stem in stems}
_FILLERS = (
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "input",
    "split", "folder", "files", "cases", "samples", "pictures", "photos", "part", "fold",
)  # fmt: skip
_ANY = "|".join(sorted(_SPLITS, key=len, reverse=True))
_FILLER = "|".join(sorted(_FILLERS, key=len, reverse=True))
_WORD = re.compile(rf"(?:{_FILLER})?(?P<split>{_ANY})(?:{_FILLER})*")

ALLOWED = "train, validation, test and the like (Training, val, test_set)"


def split_of(name: str) -> str | None:
    """The split that a name is of, None where it is no split's name.

    `train`, `TRAIN`, `training`, `train_set`, `trainset`, `Train Images`, `images-train`,
    `train_1` are all of the training split; `seg_train` and `train_val` are of none.
    """
    words = _split_words(name)
    splits = {split for word in words if (split := _of_word(word))}
    rest = [word for word in words if not _of_word(word)]
    if not splits:
        splits = {_SHORT[word] for word in words if word in _SHORT}
        rest = [word for word in words if word not in _SHORT]
        is_plain = bool(rest) and all(word in _FILLERS for word in rest)
    else:
        is_plain = all(word in _FILLERS or word.isdigit() for word in rest)
    return splits.pop() if len(splits) == 1 and is_plain else None


def refuse_half_a_split(name: str, where: str) -> None:
    """Refuses a folder that is no split's, but has a split in its name: it would be a class.

    Raises:
        UserError: naming the folder.
    """
    words = _split_words(name)
    if split_of(name) is None and any(_of_word(word) or word in _UNCLEAR for word in words):
        raise UserError(
            f"{where}: folder {name!r} looks like a split; allowed are {ALLOWED}. Rename it, or "
            "list it in data.classes where it is a class"
        )


def _split_words(name: str) -> list[str]:
    return words_of(re.sub(r"(?i)hold[ _-]out", "holdout", name))


def _of_word(word: str) -> str | None:
    match = _WORD.fullmatch(word)
    return _SPLITS[match["split"]] if match else None
