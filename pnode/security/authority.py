"""The network's authority: the orchestrator's CA, and the key that signs call tokens. Made on its first start."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pnode.errors import ConfigError
from pnode.security import certificates
from pnode.security.certificates import TlsIdentity
from pnode.security.identity import kept_ed25519
from pnode.security.principals import ORCHESTRATOR, Principal
from pnode.security.private_files import load_or_make
from pnode.security.tokens import Signer


class Authority:
    """Issues certificates and signs tokens. `unix_clock` is the network's time, in Unix seconds."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        token_key: Ed25519PrivateKey,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = unix_clock
        self.signer = Signer(token_key)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.fingerprint = certificates.fingerprint(certificate.public_bytes(serialization.Encoding.DER))

    @classmethod
    def kept(cls, folder: Path, unix_clock: Callable[[], float] = time.time) -> Authority:
        """The one in a folder, made there on the first start. Raises ConfigError where it cannot be used."""
        raw = load_or_make(folder / "authority.pem", lambda: _make(unix_clock()))
        try:
            key = serialization.load_pem_private_key(raw, password=None)
            certificate = x509.load_pem_x509_certificate(raw)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"node.data_dir: {folder / 'authority.pem'} holds no authority: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise ConfigError(f"node.data_dir: {folder / 'authority.pem'} holds a certificate of another key")
        return cls(key, certificate, kept_ed25519(folder / "tokens.pem"), unix_clock)

    @classmethod
    def fresh(cls, unix_clock: Callable[[], float] = time.time) -> Authority:
        """One that lasts as long as this process."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, certificates.self_signed(key, unix_clock()), Ed25519PrivateKey.generate(), unix_clock)

    def now(self) -> float:
        """The network's time, in Unix seconds."""
        return self._clock()

    def issue(self, request: bytes, who: Principal, life_s: float) -> bytes:
        """A certificate, as PEM, for whoever proved to be `who`. Raises BadRequest for a bad request."""
        public = certificates.requested_key(request)
        return certificates.leaf(who, public, self._certificate, self._key, self.now(), life_s)

    def own(self, life_s: float) -> TlsIdentity:
        """What the orchestrator shows to members."""
        made = certificates.new_key()
        return TlsIdentity(made.key, self.issue(made.request, ORCHESTRATOR, life_s), self.pem)

    @property
    def door(self) -> TlsIdentity:
        """What the orchestrator shows to strangers: the certificate whose fingerprint they were given."""
        return TlsIdentity(certificates.key_pem(self._key), self.pem, self.pem)


def _make(now_s: float) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certificates.self_signed(key, now_s)
    return certificates.key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)
