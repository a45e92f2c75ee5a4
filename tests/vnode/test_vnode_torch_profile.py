"""Profile `torch`: near samebits in value, stable from run to run on one machine, and labelled."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vnode_models import classifier, middle, spec
from vnode_training import classifier_stage, middle_rows, rows_of, train_step

from pnode.errors import ConfigError
from pnode.vnode import torch_profile
from pnode.vnode.stage import Stage
from pnode.vnode.state import run_digest

CPU_CLASS = re.compile(r"torch/[0-9a-z.+]+/cpu/[A-Z0-9]+/[A-Za-z0-9_.-]+")


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.use_deterministic_algorithms(False)


def digest(steps: int) -> str:
    stage = classifier_stage(profile="torch")
    for step in range(steps):
        train_step(stage, step, (2, 3))
    return run_digest([stage.state()])


def test_the_digest_is_stable_from_run_to_run() -> None:
    assert digest(4) == digest(4)


def test_both_profiles_compute_the_same_function() -> None:
    """Never compared bit by bit; but one graph misread would show here at once."""
    ours, torchs = classifier_stage(), classifier_stage(profile="torch")
    inputs, _ = rows_of(0)
    assert torch.allclose(ours.forward(inputs)["logits"], torchs.forward(inputs)["logits"], atol=1e-5)
    for step in range(5):
        assert train_step(ours, step) == pytest.approx(train_step(torchs, step), abs=1e-4)
    middles = Stage(spec(middle())), Stage(spec(middle(profile="torch")))
    given, gradients = middle_rows()
    found = []
    for stage in middles:
        stage.begin(0, 0, 6, given, {})
        found.append(stage.finish(0, 0, gradients, want_input_gradients=True).input_gradients)
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in ("a", "b"))


@pytest.mark.parametrize(
    "kind", ["matmul", "softmax", "causal", "mul", "silu", "sigmoid", "tanh", "log_softmax", "rms_norm"]
)
def test_the_other_operators_agree_too(kind: str) -> None:
    shape, other = [3, 4], [3, 4] if kind == "mul" else [4, 2]
    plain: dict[str, Any] = {"name": "m", "inputs": ["a"], "output": "c"}
    operator = {
        **{each: {**plain, each: {}} for each in ("silu", "sigmoid", "tanh", "log_softmax")},
        "mul": {**plain, "inputs": ["a", "b"], "mul": {}},
        "rms_norm": {**plain, "rms_norm": {"features": 4, "eps": 1e-5}},
        "matmul": {"name": "m", "inputs": ["a", "b"], "output": "c", "matmul": {}},
        "softmax": {"name": "m", "inputs": ["a"], "output": "c", "softmax": {}},
        "causal": {
            "name": "m",
            "inputs": ["a"],
            "output": "c",
            "multihead_attention": {"features": 4, "num_heads": 2, "causal": True},
        },
    }[kind]
    names = {"a": shape, "b": other} if kind in ("matmul", "mul") else {"a": shape}
    given = [{"name": name, "dtype": "DTYPE_F32", "shape": dims} for name, dims in names.items()]
    document = middle(inputs=given, operators=[operator], outputs=["c"])
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randn(5, *dims, generator=generator) for name, dims in names.items()}
    ours, torchs = Stage(spec(document)), Stage(spec({**document, "profile": "torch"}))
    assert torch.allclose(ours.forward(values)["c"], torchs.forward(values)["c"], atol=1e-5)
    gradient = torch.randn_like(ours.forward(values)["c"])
    found = []
    for stage in (ours, torchs):
        stage.begin(0, 0, 5, values, {})
        found.append(stage.finish(0, 0, {"c": gradient}, want_input_gradients=True).input_gradients)
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in names)


def test_bfloat16_is_storage_in_both() -> None:
    """Both widen, compute in f32 and round once, so all they differ by is what f32 may differ by, and one rounding."""
    given = [{"name": "a", "dtype": "DTYPE_BF16", "shape": [4]}]
    operators = [
        {"name": "wide", "inputs": ["a"], "output": "b", "linear": {"in_features": 4, "out_features": 6, "bias": True}},
        {"name": "up", "inputs": ["b"], "output": "c", "to_float32": {}},
        {"name": "down", "inputs": ["c"], "output": "d", "to_bfloat16": {}},
        {"name": "bend", "inputs": ["d"], "output": "e", "gelu": {}},
    ]
    document = middle(inputs=given, operators=operators, outputs=["e"])
    a = torch.linspace(-3.0, 3.0, 24).reshape(6, 4).bfloat16()
    gradient = torch.ones(6, 6).bfloat16()
    found = []
    for profile in ("samebits-1", "torch"):
        stage = Stage(spec({**document, "profile": profile}))
        (e,) = stage.begin(0, 0, 6, {"a": a}, {}).values()
        found.append([e, stage.finish(0, 0, {"e": gradient}, want_input_gradients=True).input_gradients["a"]])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype is theirs.dtype is torch.bfloat16
        assert torch.allclose(ours.float(), theirs.float(), rtol=2**-7, atol=2**-7)


def test_the_class_names_build_device_and_processor() -> None:
    stage = classifier_stage(profile="torch")
    assert stage.numerics_class == torch_profile.numerics_class("cpu")
    assert CPU_CLASS.fullmatch(stage.numerics_class)
    assert torch.__version__ in stage.numerics_class
    assert classifier_stage().numerics_class == "samebits-1"


@pytest.mark.parametrize(
    ("cpuinfo", "wanted"),
    [
        (
            "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nstepping\t: 8\n\nmodel\t: 9\n",
            "GenuineIntel-6-143-8",
        ),
        ("CPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n", "0x41-0x3-0xd0c-1"),
    ],
)
def test_the_processor_is_named_by_its_model(tmp_path: Path, cpuinfo: str, wanted: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert torch_profile._processor(path) == wanted
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", torch_profile._processor(tmp_path / "missing"))


def test_determinism_is_forced_with_one_thread() -> None:
    classifier_stage(profile="torch")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "anything")
    with pytest.raises(ConfigError, match="finds no such GPU"):
        Stage(spec(classifier(profile="torch")), device="cuda")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(ConfigError, match="runs on the cpu"):
        Stage(spec(classifier()), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_cuda_is_stable_from_run_to_run() -> None:
    digests = []
    for _ in range(2):
        stage = Stage(spec(classifier(profile="torch")), device="cuda")
        for step in range(3):
            train_step(stage, step, (3,))
        digests.append(run_digest([stage.state()]))
    assert digests[0] == digests[1]
    assert "/cuda/sm_" in stage.numerics_class
