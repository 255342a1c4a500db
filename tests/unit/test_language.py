"""The words of the code: docstrings, comments, messages, help texts and names."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.banned_words import BANNED_IN_CODE

ROOT = Path(__file__).parents[2]
FOLDERS = ("client", "configs", "deployment", "docker", "docs", "mediffusion_core", "server")
CODE = sorted(
    path
    for folder in (*FOLDERS, "simulations")
    for pattern in ("*.py", "*.yaml", "*.yml", "*.toml", "Dockerfile", "*.html")
    for path in (ROOT / folder).rglob(pattern)
)
FILES = [*CODE, *sorted(ROOT.glob("*.toml")), *sorted(ROOT.glob("*.y*ml")), ROOT / "Makefile"]

STRING = re.compile(r"(?s)^\w*(?P<quote>\"{3}|'{3}|\"|')(?P<text>.*)(?P=quote)$")
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}

ALLOWED = re.compile(
    r"'(?:judgement|judged|rival|wishes)'"  # keys in files of earlier runs, and of random numbers
    r"|release"  # of a lock
)
"""Whole strings and whole names that stay."""
ALLOWED_WITHIN = re.compile(
    r"\brelease_noise\b"  # a setting
    r"|\b_?pull_(?:messages|task_input|and_store_message)\b"  # Flower's names
)


def pieces(source: str) -> Iterator[str]:
    """Comments, strings and names of a module; lines of one comment or string are joined."""
    kind, text = "", ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT:
            continue
        now = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "STRING") and now != kind:
            words = " ".join(text.split())
            yield repr(words) if kind == "STRING" else words
            text = ""
        if now == "COMMENT":
            text += token.string.lstrip("#")
        elif now == "STRING" and (found := STRING.match(token.string)):
            text += found["text"]
        elif now == "NAME":
            yield token.string
        kind = now


def banned(text: str) -> list[str]:
    text = ALLOWED_WITHIN.sub("", text)
    if ALLOWED.fullmatch(text):
        return []
    spaced = " ".join(PART.findall(text)) if text.isidentifier() else text
    found = [re.search(rf"(?i)\b{word}\b", spaced) for word in BANNED_IN_CODE]
    found.append(re.match(r"\W?(?:What|Who) [^?]*$", spaced))
    return [one[0][:60] for one in found if one]


def words_of(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    yield from pieces(text) if path.suffix == ".py" else text.replace("_", " ").splitlines()


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in FILES}))
def test_code_has_the_words_of_the_glossary(folder: str) -> None:
    found = [
        f"{path.name}: {word}"
        for path in FILES
        if path.parent == ROOT / folder
        for piece in words_of(path)
        for word in banned(piece)
    ]
    assert found == []


def test_a_banned_word_is_found_wherever_it_stands() -> None:
    for source in (
        '"""The images, of\n    which two are masks."""',
        "# The images, of\n# which two are masks.",
        'raise ValueError("images, of " "which two are masks")',
        "source_path = 1",
        "def judge(): ...",
        "class PullTask: ...",
        '"""What a site sends."""',
        "# A head knows",
    ):
        assert [word for piece in pieces(source) for word in banned(piece)], source
    for source in ("grid.pull_messages(ids)", 'state["judged"]', "swish(x)", "lock.release()"):
        assert not [word for piece in pieces(source) for word in banned(piece)], source
