"""Call tokens: short-lived statements of the orchestrator on who may call what. A strict subset of JWT.

One algorithm (EdDSA), one header, exactly the claims of its audience, each of one type, and a bound on the size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pnode.errors import PermissionDenied, Unauthenticated
from pnode.security.identity import public_bytes
from pnode.security.principals import Principal

MEMBER, VNODE, NODE = "member", "vnode", "node"

# Names of runs and VNodes have some hundred characters each; all of ours are under 1 KiB.
_MAX_CHARACTERS = 2048
_HEADER = {"alg": "EdDSA", "typ": "JWT"}
_COMMON = {"sub": str, "uuid": str, "aud": str, "iat": int, "exp": int}
_CLAIMS: dict[str, dict[str, type]] = {
    MEMBER: _COMMON,
    VNODE: {**_COMMON, "run": str, "vnode": str, "gen": int, "kinds": list},
    NODE: {**_COMMON, "node": str},
}
# A token may be this much younger than the reader's idea of the orchestrator's time, which has travelled.
_LEEWAY_S = 30.0
_MAX_KNOWN = 1024


@dataclass(frozen=True)
class Claims:
    """What a token says. `holder` may make calls of `kinds` to one VNode in one generation, or to a node, or ours."""

    holder: Principal
    audience: str
    issued_s: int
    expires_s: int
    run: str = ""
    vnode: str = ""
    generation: int = 0
    kinds: tuple[str, ...] = ()
    node: str = ""

    def check_time(self, now_s: float) -> None:
        """By the orchestrator's time. Raises Unauthenticated where the token has ended, or not begun."""
        if now_s >= self.expires_s:
            raise Unauthenticated(f"the token ended {now_s - self.expires_s:.0f} s ago")
        if now_s < self.issued_s - _LEEWAY_S:
            raise Unauthenticated(f"the token begins only in {self.issued_s - now_s:.0f} s")

    def check_vnode(self, run: str, vnode: str) -> None:
        """Raises PermissionDenied for a token of another VNode."""
        if (self.run, self.vnode) != (run, vnode):
            raise PermissionDenied(f"the token is for VNode {self.vnode!r} of run {self.run!r}")

    def check_generation(self, generation: int) -> None:
        """Raises PermissionDenied for a token of another generation."""
        if self.generation != generation:
            raise PermissionDenied(f"the token is for generation {self.generation}, the call for {generation}")


class Signer:
    """Signs tokens, in the orchestrator alone."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = public_bytes(key.public_key())

    def sign(self, claims: Claims) -> str:
        """The token for these claims."""
        payload: dict[str, Any] = {
            "sub": claims.holder.role,
            "uuid": claims.holder.uuid,
            "aud": claims.audience,
            "iat": claims.issued_s,
            "exp": claims.expires_s,
        }
        if claims.audience == VNODE:
            payload |= {"run": claims.run, "vnode": claims.vnode, "gen": claims.generation}
            payload["kinds"] = list(claims.kinds)
        elif claims.audience == NODE:
            payload["node"] = claims.node
        return jwt.encode(payload, self._key, algorithm="EdDSA")


class Reader:
    """Reads the tokens of one network. Thread-safe. A token that was read before costs no second verification."""

    def __init__(self, public: bytes) -> None:
        self.public = public
        self._key = Ed25519PublicKey.from_public_bytes(public)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Claims] = OrderedDict()

    def read(self, token: str) -> Claims:
        """The claims of a token, whose time is not checked. Raises Unauthenticated for whatever we did not sign."""
        with self._lock:
            known = self._known.get(token)
            if known is not None:
                self._known.move_to_end(token)
                return known
        claims = self._verified(token)
        with self._lock:
            self._known[token] = claims
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return claims

    def _verified(self, token: str) -> Claims:
        if len(token) > _MAX_CHARACTERS:
            raise Unauthenticated(f"the token has {len(token)} characters; {_MAX_CHARACTERS} at most are read")
        try:
            if jwt.get_unverified_header(token) != _HEADER:
                raise Unauthenticated("the token has another header than ours")
            payload = jwt.decode(token, self._key, algorithms=["EdDSA"], options=_OURS)
        except jwt.InvalidSignatureError:
            raise Unauthenticated("the token was not signed by this network's orchestrator") from None
        except (jwt.PyJWTError, RecursionError):
            raise Unauthenticated("the token is malformed") from None
        return _claims(payload)


# The library checks the signature; times, audience and types are checked here, by the orchestrator's clock.
_OURS: Any = {
    "verify_signature": True,
    **dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub"), False),
    "verify_jti": False,
}


def _claims(payload: dict[str, Any]) -> Claims:
    expected = _CLAIMS.get(str(payload.get("aud")), {})
    # type() and not isinstance: true is an int to Python.
    if {name: type(value) for name, value in payload.items()} != expected:
        raise Unauthenticated("the token has other claims than ours")
    return Claims(
        holder=Principal(payload["sub"], payload["uuid"]),
        audience=payload["aud"],
        issued_s=payload["iat"],
        expires_s=payload["exp"],
        run=payload.get("run", ""),
        vnode=payload.get("vnode", ""),
        generation=payload.get("gen", 0),
        kinds=tuple(map(str, payload.get("kinds", ()))),
        node=payload.get("node", ""),
    )
