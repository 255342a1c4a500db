"""Digests of named values, and seeds derived from a run's seed."""

import hashlib
import json


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed of its own for every purpose, from the run's seed and the purpose's name."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fingerprint(**parts: object) -> str:
    """SHA-256 over named parts (JSON values; bytes enter by their own digest), 32 digits."""

    def digest(part: object) -> object:
        return hashlib.sha256(part).hexdigest() if isinstance(part, bytes) else part

    text = json.dumps({key: digest(part) for key, part in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
