"""The identity of a member: an Ed25519 key, and the UUID that belongs to it."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pnode.errors import BadRequest, ConfigError
from pnode.security.private_files import load_or_make

# The version that RFC 9562 leaves to whoever makes a UUID: ours are the beginning of a digest of the key.
OWN_VERSION = 8


class Identity:
    """A signing key, and a UUID: the one that is configured, else the one that follows from the key."""

    def __init__(self, key: Ed25519PrivateKey, configured: str | None = None) -> None:
        self._key = key
        self.public = public_bytes(key.public_key())
        self.uuid = uuid_of(self.public) if configured is None else configured

    @classmethod
    def kept(cls, folder: Path, configured: str | None = None, *, setting: str = "node.data_dir") -> Identity:
        """The one in `folder/identity.pem`, made there on the first start. Raises ConfigError where it is unusable."""
        return cls(kept_ed25519(folder / "identity.pem", setting=setting), configured)

    @classmethod
    def fresh(cls, configured: str | None = None) -> Identity:
        """One that lasts as long as this process."""
        return cls(Ed25519PrivateKey.generate(), configured)

    def sign(self, content: bytes) -> bytes:
        """The signature of some bytes, which must say what they are for."""
        return self._key.sign(content)


def uuid_of(public: bytes) -> str:
    """The UUID that belongs to a public key: nobody can find another key for it."""
    number = int.from_bytes(hashlib.sha256(b"pnode identity 1\0" + public).digest()[:16], "big")
    number = number & ~(0xF << 76) | OWN_VERSION << 76
    return str(uuid.UUID(int=number & ~(0b11 << 62) | 0b10 << 62))


def is_signed(public: bytes, content: bytes, signature: bytes) -> bool:
    """Whether the owner of a public key signed this. Raises BadRequest where that is no key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        raise BadRequest("public_key is not an Ed25519 key of 32 bytes") from None
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def kept_ed25519(path: Path, *, setting: str = "node.data_dir") -> Ed25519PrivateKey:
    """The Ed25519 key in a private file, made on the first call. Raises ConfigError where it holds anything else."""
    pem = load_or_make(path, lambda: private_pem(Ed25519PrivateKey.generate()), setting=setting)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{setting}: {path} holds no private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{setting}: {path} holds another kind of key; Ed25519 is expected")
    return key


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """As it is kept on disk."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
