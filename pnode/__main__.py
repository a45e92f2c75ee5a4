"""`python -m pnode`."""

from __future__ import annotations

import sys

from pnode.cli import main

sys.exit(main())
