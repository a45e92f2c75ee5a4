"""What the parts cost, measured; run from the source tree, and no part of the installed package."""
