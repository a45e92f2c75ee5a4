"""Who may call: a node, a driver or the orchestrator, and how certificates and tokens write that down."""

from __future__ import annotations

import re
from typing import NamedTuple

# Names inside certificates are nobody's to resolve: .internal belongs to no one on the Internet.
_DOMAIN = "pnode.internal"
_DNS = re.compile(rf"([0-9a-f-]{{36}})\.(node|driver)\.{re.escape(_DOMAIN)}", re.ASCII)

NODE, DRIVER, AUTHORITY = "node", "driver", "orchestrator"


class Principal(NamedTuple):
    """One caller. The orchestrator has no UUID."""

    role: str
    uuid: str = ""

    @property
    def dns(self) -> str:
        """The name in its certificate, which those who connect to it expect."""
        return f"{AUTHORITY}.{_DOMAIN}" if self.role == AUTHORITY else f"{self.uuid}.{self.role}.{_DOMAIN}"

    def __str__(self) -> str:
        return f"{self.role} {self.uuid}".rstrip()


ORCHESTRATOR = Principal(AUTHORITY)


def from_dns(name: str) -> Principal | None:
    """Who has this name in a certificate; None where it is none of ours."""
    if name == ORCHESTRATOR.dns:
        return ORCHESTRATOR
    found = _DNS.fullmatch(name)
    return Principal(found[2], found[1]) if found else None
