"""A transformer with bfloat16 activations and float32 parameters: cut of the batch and threads change no bit."""

from __future__ import annotations

import pytest
import samebits
import torch
from kernels_bits import floats
from samebits import nn, optim

BATCH, POSITIONS, FEATURES, CLASSES = 7, 5, 16, 3


class Model(torch.nn.Module):
    """An encoder layer on bfloat16, then one output a class."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(FEATURES, 2, 24, dropout=0.0)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(samebits.mean_pool(self.encoder(samebits.to_bfloat16(x))))
        return out


def trained(parts: list[int]) -> str:
    """The digest of losses, gradients and parameters after two steps from microbatches."""
    model = Model()
    nn.init_(model, 5)
    optimizer, kept = optim.AdamW(model.parameters(), lr=1e-2), dict[str, torch.Tensor]()
    for step in range(2):
        x = torch.from_numpy(floats(step, "plain", BATCH, POSITIONS, FEATURES))
        target, total = torch.arange(BATCH) % CLASSES, torch.tensor(0.0)
        optimizer.zero_grad()
        for rows, wanted in zip(x.split(parts), target.split(parts), strict=True):
            logits = model(rows)
            assert logits.dtype is torch.bfloat16
            torch.autograd.backward(samebits.cross_entropy(logits, wanted, count=BATCH))
            total = samebits.row_sum(samebits.cross_entropy(logits.detach(), wanted, reduction="none"), total)
        grads = {f"{step} {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(grad.dtype is torch.float32 for grad in grads.values())
        kept |= {name: grad.clone() for name, grad in grads.items()} | {f"{step}": total}
        optimizer.step()
    assert len(kept) == 2 + 2 * len(list(model.parameters()))
    return samebits.digest(kept | dict(model.named_parameters()))


@pytest.mark.parametrize("parts", [[1] * BATCH, [3, 4], [6, 1]])
def test_microbatches_in_order_equal_the_batch(parts: list[int]) -> None:
    assert trained(parts) == trained([BATCH])


def test_two_threads_change_nothing(shared_out: None) -> None:
    two = trained([BATCH])
    samebits.set_num_threads(1)
    assert trained([BATCH]) == two


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_optimizers_refuse_bfloat16_parameters(kind: type[torch.optim.Optimizer]) -> None:
    good, narrow = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2).bfloat16())
    refusal = rf"^{kind.__name__}: parameter must be torch.float32, not torch.bfloat16"
    with pytest.raises(TypeError, match=refusal):
        kind([good, narrow], lr=0.1)  # type: ignore[call-arg]  # all of them take lr
    optimizer = kind([good], lr=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=refusal):
        optimizer.add_param_group({"params": [narrow]})
    assert len(optimizer.param_groups) == 1
