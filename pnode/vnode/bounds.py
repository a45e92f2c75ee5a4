"""What a spec may claim at most, checked before any work in proportion to the claim. A spec is hostile until then."""

from __future__ import annotations

import re

MAX_SPEC_BYTES = 2 * 2**20  # as JSON or as protobuf
MAX_OPERATORS = 4096
MAX_OPERANDS = 2  # of one operator
MAX_TENSORS = 64  # inputs, targets or outputs of one VNode
MAX_DIMS = 4  # of one row, without the leading axis
MAX_DIM = 2**24
MAX_ROW_ELEMENTS = 2**28  # of one value, of one row
MAX_PARAMETER_ELEMENTS = 2**34  # of one VNode: 64 GiB of weights
MAX_ROWS = 2**24
MAX_BATCH_ROWS = 2**31
MAX_WINDOW = 64
MAX_STEPS = 2**53  # a schedule computes with steps as binary64
MAX_MEMORY_BYTES = 2**48
MAX_SECONDS = 86_400.0
MAX_KEEP = 1000

# Names stand in paths of parameters and of blobs, in logs and in error messages: nothing there may need quoting.
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
NAME_RULE = "1 to 128 letters, digits and _.- with a letter, a digit or _ first"
PROFILES = ("samebits-1", "torch")
# Whose contract says that the bits of a row do not depend on the other rows: only their calls are ever joined.
ROW_INDEPENDENT_PROFILES = frozenset({"samebits-1"})


def shown(text: object, limit: int = 60) -> str:
    """A claimed value as an error may show it: quoted, and cut where it is long."""
    if isinstance(text, int | float):
        return str(text)
    full = str(text)
    return repr(full) if len(full) <= limit else f"{full[:limit]!r} and {len(full) - limit} characters more"
