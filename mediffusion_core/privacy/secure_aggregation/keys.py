"""Keys of one sum: agreement by X25519, sealed messages by AES-GCM, masks by AES in counter mode.

`cryptography` is imported inside the functions, since runs without secure aggregation need none.
"""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
SEALED_BYTES = 16
"""By so many bytes a sealed text is longer than the text."""


@dataclass(frozen=True)
class KeyPair:
    """A private key of X25519 (RFC 7748) and its public key, 32 bytes each."""

    private: bytes
    public: bytes

    @classmethod
    def of(cls, private: bytes) -> "KeyPair":
        """The pair of a private key."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        return cls(
            private, X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        )


def new_key_pair() -> KeyPair:
    """A pair from the operating system's random numbers."""
    return KeyPair.of(os.urandom(KEY_BYTES))


def agreed_key(own: KeyPair, other: bytes, purpose: str) -> bytes:
    """The key that two sites derive, each from its own pair and the other's public key.

    HKDF with SHA-256 (RFC 5869) of X25519's shared secret. Keys for different purposes are
    independent.

    Raises:
        ValueError: for a public key of small order, which gives the same secret to all.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    private = X25519PrivateKey.from_private_bytes(own.private)
    secret = private.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(secret)


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypts and authenticates the only text of a key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    # A nonce may be constant where its key has one message.
    return AESGCM(key).encrypt(bytes(12), text, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The text of `seal`.

    Raises:
        ValueError: if it was not sealed with that key.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        raise ValueError("a sealed text of another key") from None


def mask(key: bytes, length: int) -> NDArray[np.uint64]:
    """Numbers modulo 2⁶⁴, (length,): the stream of AES-256 in counter mode under the key."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * length)), dtype="<u8").astype(np.uint64)
