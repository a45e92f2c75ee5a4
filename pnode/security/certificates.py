"""TLS keys and certificates. The keys live in memory only, one for each certificate, and last as long as it does."""

from __future__ import annotations

import datetime
import hashlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pnode.errors import BadRequest
from pnode.security.principals import DRIVER, ORCHESTRATOR, Principal

# TLS goes by each machine's own clock, which is often wrong at home: certificates begin a day before they are made.
_BACKDATED = datetime.timedelta(days=1)
_AUTHORITY_DAYS = 3650
# A request with one name and one key has some 250 bytes.
_MAX_REQUEST_BYTES = 4096


class TlsIdentity(NamedTuple):
    """What one end of a TLS connection shows, and whom it believes. All of it is PEM."""

    key: bytes
    certificate: bytes
    authority: bytes


class NewKey(NamedTuple):
    """A key that was just made, as PEM, and the request for its certificate, as DER."""

    key: bytes
    request: bytes


def new_key() -> NewKey:
    """A key for one certificate. P-256, for gRPC's TLS does not take Ed25519."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name("pnode")).sign(key, hashes.SHA256())
    return NewKey(key_pem(key), request.public_bytes(serialization.Encoding.DER))


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a certificate is asked for; whoever asks has proven to hold it. Raises BadRequest."""
    if len(request) > _MAX_REQUEST_BYTES:
        raise BadRequest(f"the certificate request has {len(request)} bytes; {_MAX_REQUEST_BYTES} at most are read")
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        proven = parsed.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise BadRequest("the certificate request is malformed") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("the certificate request is not for a P-256 key")
    if not proven:
        raise BadRequest("the certificate request is not signed by its key")
    return key


def self_signed(key: ec.EllipticCurvePrivateKey, now_s: float) -> x509.Certificate:
    """The authority's own certificate. It stands at the door too: whoever knows its fingerprint knows the door."""
    name = _name("pnode authority")
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, key.public_key(), now_s, _AUTHORITY_DAYS * 86_400)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(ORCHESTRATOR.dns)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def leaf(
    who: Principal,
    public: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    now_s: float,
    life_s: float,
) -> bytes:
    """A member's certificate, as PEM: good for as long as `life_s`. Only who serves may show it as a server."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if who.role != DRIVER:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    made = (
        _builder(_name(str(who)), authority.subject, public, now_s, life_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(who.dns)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: bytes) -> str:
    """Of a certificate in DER: sha256: and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(certificate).hexdigest()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A TLS key as gRPC takes it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now_s: float, life_s: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(seconds=life_s))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
