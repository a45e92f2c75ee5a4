"""job=digits: a transformer classifier on 1,797 real images of handwritten digits (DIGITS.md says whose they are).

An image of 8x8 pixels becomes 9 tokens: overlapping patches of 4x4, two pixels apart, each pixel p as p / 8 - 1, which
binary32 holds exactly. Split and batch order come from Philox, so they depend on nothing but the seed.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from pnode.client.batch import Batch, from_array
from pnode.client.model import transformer_classifier
from pnode.config.schema import JobSection
from pnode.jobs.job import Job
from pnode.jobs.philox import permutation
from pnode.v1 import spec_pb2

NUM_TRAIN = 1437
PATCH = 4
STRIDE = 2
CLASSES = 10


class Rows(NamedTuple):
    """Images as tokens, f32 [rows, 9, 16], and their labels, i64 [rows]."""

    tokens: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def batch(self, chosen: npt.NDArray[np.int64]) -> Batch:
        """Some rows, in the order given."""
        tokens = from_array("tokens", self.tokens[chosen])
        return Batch((tokens,), (from_array("label", self.labels[chosen]),))


def tokens_of(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """u8 [rows, 8, 8] to f32 [rows, 9, 16]: patches by row, then by column; the pixels of a patch likewise."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    return (windows.reshape(len(images), -1, PATCH * PATCH) / np.float32(8) - np.float32(1)).astype(np.float32)


@lru_cache(maxsize=1)
def load_rows() -> Rows:
    """All images, in the file's order."""
    file = load((resources.files("pnode.jobs") / "digits.safetensors").read_bytes())
    return Rows(tokens_of(file["images"]), file["labels"].astype(np.int64))


@lru_cache(maxsize=1)
def split() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the 1,437 images to train on and of the 360 to test with: always the same ones."""
    order = permutation(len(load_rows().labels), seed=0, path="digits/split")
    return order[:NUM_TRAIN], order[NUM_TRAIN:]


@lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return permutation(NUM_TRAIN, seed=seed, path="digits/order", step=epoch)


def batch(seed: int, step: int, num_rows: int) -> Batch:
    """The batch of a step: the next rows of an endless row of epochs, each a permutation of its own."""
    first = step * num_rows
    places = [(position // NUM_TRAIN, position % NUM_TRAIN) for position in range(first, first + num_rows)]
    chosen = np.array([_epoch(seed, epoch)[place] for epoch, place in places])
    return load_rows().batch(split()[0][chosen])


def make(settings: JobSection) -> Job:
    """The job as configured."""
    model = transformer_classifier(
        tokens=9, in_features=PATCH * PATCH, features=128, num_blocks=3, num_heads=4, mlp=4, classes=CLASSES
    )
    adamw = spec_pb2.AdamW(lr=settings.lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=settings.weight_decay)
    schedule = spec_pb2.Schedule(warmup_steps=min(settings.warmup, settings.steps), total_steps=settings.steps)
    test = load_rows().batch(split()[1])
    return Job(
        name="digits",
        model=model,
        optimizer=spec_pb2.Optimizer(adamw=adamw, schedule=schedule),
        seed=settings.seed,
        profile=settings.profile,
        steps=settings.steps,
        batch=lambda step: batch(settings.seed, step, settings.batch),
        test=test,
        stages=settings.stages,
        num_microbatches=settings.microbatches,
        limits=spec_pb2.Limits(
            memory_bytes=settings.memory,
            cpu_s=settings.cpu_s,
            wall_s=settings.wall_s,
            max_rows=max(settings.batch, test.num_rows),
            microbatch_rows=-(-settings.batch // settings.microbatches),
        ),
        checkpoint=spec_pb2.CheckpointPolicy(every_steps=settings.checkpoint, keep=settings.keep),
    )
