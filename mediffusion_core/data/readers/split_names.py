"""Our name of a split from the name in a data set, such as `Training/`, `test_set/` or `val`."""

import re

from mediffusion_core.common.errors import UserError

_STEMS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "validate", "validating", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
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
    words = _words(name)
    splits = {_SPLITS[match["split"]] for word in words if (match := _WORD.fullmatch(word))}
    rest = [word for word in words if not _WORD.fullmatch(word)]
    plain = all(word in _FILLERS or word.isdigit() for word in rest)
    return splits.pop() if len(splits) == 1 and plain else None


def refuse_half_a_split(name: str, where: str) -> None:
    """Refuses a folder that is no split's, but has a split in its name: it would be a class.

    Raises:
        UserError: naming the folder.
    """
    if split_of(name) is None and any(_WORD.fullmatch(word) for word in _words(name)):
        raise UserError(
            f"{where}: folder {name!r} looks like a split; allowed are {ALLOWED}. Rename it, or "
            "list it in data.classes where it is a class"
        )


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W\d_]+|\d+", spaced.casefold())
