"""Products in less than the full precision of float32, as torch is told to allow them."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, DEVICES, Case, cast, relative_error, run

from oltr_ext import ops

every_op = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
every_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture
def medium_precision():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@every_device
@every_op
@pytest.mark.parametrize("shape", [(5, 7, 17), (65, 300, 40)], ids=str)
def test_medium_precision_rounds_operands_only(case: Case, shape, medium_precision, device):
    """At most bfloat16's own rounding; values stay float32, near distances exact."""
    inputs = cast(case.make(*shape), torch.float32, case, device=device)
    want = run(case, cast(inputs, torch.float64, case), "reference")
    for name, got in run(case, inputs).items():
        if name == "out1" and case.name == "nearest_centroid":
            continue  # two classes at nearly one distance may change places
        assert got.dtype in (torch.float32, want[name].dtype), name
        assert relative_error(got, want[name]) < 2e-2, name


@pytest.mark.parametrize("setting", ["cuda.matmul", "mkldnn.matmul"])
def test_precision_that_torch_was_told_for_one_backend(setting, run_python):
    """From then on torch has no one answer for all of them."""
    code = (
        "import torch\n"
        f"torch.backends.{setting}.fp32_precision = 'tf32'\n"
        "from op_cases import CASES, cast, run\n"
        "from oltr_ext.ops._register import precision\n"
        "for case in CASES:\n"
        "    inputs = cast(case.make(5, 9, 16), torch.float32, case)\n"
        "    run(case, inputs)\n"
        "    torch.compile(case.call, fullgraph=True, backend='eager')(**inputs)\n"
        "print(precision('cpu'), precision('cuda'))\n"
    )
    want = "highest high" if "cuda" in setting else "high highest"
    assert run_python(code).strip() == want


@every_device
def test_medium_precision_measures_the_winner_exactly(medium_precision, device):
    memory = torch.randn(200, 64).to(device)
    x = memory[::4] * (1 + 1e-4)
    distance, index = ops.nearest_centroid(x, memory)
    assert index.tolist() == list(range(0, 200, 4))
    want = (x.double() - memory[index].double()).norm(dim=1)
    assert ((distance - want).abs() / want).max() < 1e-3


@every_device
def test_medium_precision_when_later_centroids_are_shorter(medium_precision, device):
    """The best so far may have lost more of its score to rounding than any class still to come."""
    x, noise = torch.randn(144, 40), torch.randn(144, 40)
    noise -= (noise * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    longer = 2 * x + 0.05 * noise  # a little farther from x than zero is
    memory = torch.cat([longer, torch.zeros(144, 40)]).to(device)
    x = x.to(device)
    distance, _ = ops.nearest_centroid(x, memory)
    want = torch.cdist(x.double(), memory.double()).amin(1)
    assert ((distance - want).abs() / want).max() < 1e-6


@every_device
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("width", [64, 512])
def test_medium_precision_where_few_coordinates_dominate(width, side, medium_precision, device):
    """Rounding errors of the products do not average out there."""

    def dominated(rows: int) -> torch.Tensor:
        large = 200 * torch.nn.functional.normalize(1 + 0.03 * torch.randn(rows, 4))
        return torch.cat([large, 0.01 * torch.randn(rows, width - 4)], 1).to(device)

    x, memory = dominated(200), side * dominated(1000)
    distance, _ = ops.nearest_centroid(x, memory)
    want = torch.cdist(x.double(), memory.double()).amin(1)
    assert ((distance - want).abs() / want).max() < 1e-6
