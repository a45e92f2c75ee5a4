"""Writes pnode/jobs/digits.safetensors from scikit-learn's copy of the UCI digits. Run once, by hand:

    python tests/tools/make_digits.py

scikit-learn is not a dependency of PNode; the file is in the tree. See pnode/jobs/DIGITS.md for origin and licence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[2] / "pnode" / "jobs" / "digits.safetensors"


def main() -> None:
    """Images as 0..16 in one byte a pixel, labels as one byte each, in scikit-learn's order."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    assert (images == digits.images).all(), "the pixels are whole numbers"
    save_file(
        {"images": images, "labels": digits.target.astype(np.uint8)},
        TARGET,
        metadata={
            "source": "UCI Optical Recognition of Handwritten Digits, test set, as in scikit-learn",
            "doi": "10.24432/C50P49",
            "licence": "CC BY 4.0",
        },
    )


if __name__ == "__main__":
    main()
