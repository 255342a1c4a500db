"""Which files of a folder are images, and why each of the others is not read."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.finding import Finding
from mediffusion_core.data.masks import find_masks
from mediffusion_core.data.store.images import SUFFIXES

SYSTEM_SIGNS = "@$~"
"""A folder whose name starts with one of these belongs to a NAS or to Windows."""

SYSTEM_FOLDERS = {
    "__macosx", "#recycle", "#snapshot", "system volume information", "lost+found", "recycler",
    "network trash folder", "temporary items", "__pycache__", "thumbnails",
    "thumbnail", "thumbs",
}  # fmt: skip

HIDDEN = "hidden"
SYSTEM = "in folders of the system"
MASK = "masks"
OTHER = "of a kind that is not read"
UNLISTED = "not in the table"
LINK = "links to folders, which are not followed"

HARMLESS = {
    "", ".csv", ".tsv", ".txt", ".md", ".json", ".xml", ".xlsx", ".parquet", ".pdf", ".html",
    ".yaml", ".yml", ".toml", ".py", ".ipynb", ".sh", ".db", ".ini", ".lnk", ".log", ".docx",
}  # fmt: skip
"""Endings of files that hold no image; a folder of images may well have them beside it."""

NAME_BYTES = 200
"""Of a name that we give a file; file systems allow 255."""

HARMLESS_REASONS = {HIDDEN, SYSTEM, MASK}


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read, by its path relative to the folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class FolderFiles:
    """Every file below a folder, once: the images that are read, and the files that are not."""

    images: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def count(self) -> int:
        """How many files there are."""
        return len(self.images) + len(self.left_out)

    def without(self, paths: Collection[str], reason: str) -> "FolderFiles":
        """The same files, some of whose images are left out for one more reason."""
        dropped = set(paths)
        kept = tuple(path for path in self.images if path not in dropped)
        more = tuple(LeftOut(path, reason) for path in self.images if path in dropped)
        return FolderFiles(kept, self.left_out + more)


def is_picture(path: Path) -> bool:
    """Whether a file is named as the pictures are that can be read."""
    return path.suffix.lower() in SUFFIXES


def list_folder(
    root: Path,
    is_image: Callable[[Path], bool] = is_picture,
    *,
    classes: Sequence[str] = (),
    masks: bool = True,
) -> FolderFiles:
    """Looks at every file below a folder; links to folders are named, not followed.

    Args:
        root: the folder.
        is_image: whether a file is an image that can be read, by its name or its content.
        classes: folders with these names hold images, though they may be named as for masks.
        masks: whether images that are masks by their name are left out.

    Raises:
        UserError: for a folder that can't be opened.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{shown(root)}: {shown(error.filename)}: {error.strerror}")

    images: list[str] = []
    left_out: list[LeftOut] = []
    for place, folders, files in os.walk(root, onerror=refuse):
        folders.sort()
        relative = Path(place).relative_to(root)
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        left_out += [LeftOut((relative / name).as_posix(), LINK) for name in links]
        folders[:] = [name for name in folders if name not in links]
        for name in sorted(files):
            path = (relative / name).as_posix()
            reason = _reason(root, path, is_image)
            if reason is None:
                images.append(path)
            else:
                left_out.append(LeftOut(path, reason))
    found = FolderFiles(tuple(sorted(images)), tuple(left_out))
    return found.without(find_masks(found.images, classes), MASK) if masks else found


def _reason(root: Path, path: str, is_image: Callable[[Path], bool]) -> str | None:
    *folders, name = PurePosixPath(path).parts
    if any(_is_of_the_system(folder) for folder in folders):
        return SYSTEM
    if name[0] == "." or any(folder[0] == "." for folder in folders):
        return HIDDEN
    return None if is_image(root / path) else OTHER


def _is_of_the_system(folder: str) -> bool:
    return folder[0] in SYSTEM_SIGNS or folder.lower() in SYSTEM_FOLDERS


def is_printable(name: str) -> bool:
    """Whether a name has no control characters, and no bytes that are not UTF-8."""
    return not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)


def shown(path: object) -> str:
    r"""A path as text that can be printed and stored: bytes that are not UTF-8 become `\xfc`."""
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def same_name(path: str) -> str:
    """One form for all spellings of a path that look the same (accents as one character or two)."""
    return "/".join(part.strip() for part in unicodedata.normalize("NFC", path).split("/"))


def is_harmless(file: LeftOut) -> bool:
    """Whether leaving a file out loses no image that its owner may have meant."""
    ending = PurePosixPath(file.path).suffix.lower()
    return file.reason in HARMLESS_REASONS or (file.reason == OTHER and ending in HARMLESS)


def file_name(text: str, ending: str) -> str:
    """Turns the name of a class or an image into a valid name of a file."""
    plain = "".join("_" if sign in "/\\" or not is_printable(sign) else sign for sign in text)
    kept = plain.encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{kept}{ending}"


def summary(left_out: Iterable[LeftOut], *, named: bool = True) -> list[Finding]:
    """One line for each reason: how many files, which endings, and the first of them.

    Args:
        left_out: files that are not read.
        named: whether paths may be shown; those of DICOM files may name patients.
    """
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(one.path)
    return [_line(reason, paths, named) for reason, paths in by_reason.items()]


def _line(reason: str, paths: list[str], named: bool) -> Finding:
    text = f"{len(paths)} {'file is' if len(paths) == 1 else 'files are'} not read: {reason}"
    if reason == OTHER:
        counts = Counter(_ending(path, named) for path in paths)
        text += f" ({', '.join(f'{ending} {count}' for ending, count in counts.most_common())})"
    if named:
        text += f", the first is {shown(paths[0])}"
    harmless = all(is_harmless(LeftOut(path, reason)) for path in paths)
    return Finding("ok" if harmless else "warning", text)


def _ending(path: str, named: bool) -> str:
    ending = PurePosixPath(path).suffix.lower()
    if named or ending in HARMLESS:
        return shown(ending) or "no ending"
    return "others"
