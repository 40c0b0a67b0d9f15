"""What only a GPU can show: streams, graphs, no waiting, memory, banks beyond 32-bit indices.

That the ops compute the right thing there, test_ops.py and its neighbours check on every device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import CASES, Case, cast, relative_error, run

from oltr_ext import ops, use_backend
from oltr_ext.ops._backend import OPS, STATUS

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
every_op = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
MB = 1 << 20


@pytest.mark.skipif(STATUS.cuda_error is not None, reason=f"{STATUS.cuda_error}")
def test_every_op_has_cuda_kernels_both_ways():
    assert all("cuda" in STATUS.op_devices[op] for op in OPS), STATUS.op_devices


# --- on any machine: the plan -------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 64, 1024])
@pytest.mark.parametrize("C", [10, 8142, 1_000_000, 1 << 32])
@pytest.mark.parametrize("D", [16, 512, 4096])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_plan(B, C, D, dtype):
    _C = pytest.importorskip("oltr_ext._C")
    plan = _C.plan(B, C, D, dtype, "cuda")
    for chunk in (plan["forward_chunk"], plan["backward_chunk"]):
        assert chunk % 128 == 0 and 0 < chunk < C + 128
        assert B * chunk < 2**31  # a chunk's logits, which the library's 32-bit sizes can hold
    assert (plan["fused_width"] >= D) == (dtype == "bfloat16" and D <= 512 and C <= 2**30)
    assert (plan["fused_parts"] > 0) == (plan["fused_width"] > 0)


# --- on a GPU -----------------------------------------------------------------------------------


def on_gpu(case: Case, shape: tuple[int, int, int], dtype=torch.float32):
    return cast(case.make(*shape), dtype, case, device="cuda")


@needs_gpu
@every_op
@pytest.mark.parametrize("shape", [(256, 8142, 512), (33, 20_001, 1000)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 5e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"]
)
def test_large_shapes_against_float64(case: Case, shape, dtype, bound):
    inputs = on_gpu(case, shape, dtype)
    got = run(case, inputs)
    want = run(case, cast(inputs, torch.float64, case, device="cuda"), "reference")
    for name in want:
        if name == "out1" and case.name == "nearest_centroid":
            continue  # random centroids: two may be equally near in float32
        assert relative_error(got[name], want[name]) < bound, name


@needs_gpu
@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_same_bits_twice(case: Case, dtype):
    inputs = on_gpu(case, (130, 20_000, 128), dtype)
    first, second = run(case, inputs), run(case, inputs)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_gpu
@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_written_before_it_is_read(case: Case, dtype):
    """Here torch fills what it allocates with NaN, the workspace too."""
    inputs = on_gpu(case, (70, 3000, 65), dtype)
    want = run(case, inputs)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device="cuda").isnan().all()
        got = run(case, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@needs_gpu
@every_op
def test_waits_for_nothing(case: Case):
    inputs = on_gpu(case, (20, 300, 32))
    run(case, inputs)  # the library handle is made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = case.call(**inputs)
        total = sum(o.float().sum() for o in outputs if o.is_floating_point())
        torch.autograd.grad(total, [inputs[n] for n in case.differentiable])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@every_op
def test_runs_on_the_current_stream(case: Case):
    inputs = on_gpu(case, (40, 3000, 64))
    want = run(case, inputs)
    side = torch.cuda.Stream()
    late = {n: t.detach().clone() if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
    for name in case.differentiable:
        late[name].fill_(float("nan"))
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        for name in case.differentiable:
            late[name].copy_(inputs[name].detach())
            late[name].requires_grad_()
        got = run(case, late)
    torch.cuda.current_stream().wait_stream(side)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@needs_gpu
@every_op
def test_graph_captures_both_directions(case: Case):
    inputs = on_gpu(case, (24, 3000, 64))
    leaves = [inputs[n] for n in case.differentiable]

    def step():
        outputs = case.call(**inputs)
        total = sum(o.float().square().sum() for o in outputs if o.is_floating_point())
        return torch.autograd.grad(total, leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.5)
    graph.replay()
    replayed = [g.clone() for g in captured]
    for got, want in zip(replayed, step(), strict=True):
        assert torch.equal(got, want)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["memory_attention", "meta_embedding", "cosine_cross_entropy"])
def test_memory_beyond_results_is_bounded(name, dtype):
    """Inputs, outputs and gradients aside, at most 256 MB; a B x C would be 1 GB here."""
    case = next(c for c in CASES if c.name == name)
    inputs = on_gpu(case, (1024, 250_000, 64), dtype)
    run(case, {**inputs, **{n: inputs[n] for n in inputs}})
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = case.call(**inputs)
    leaves = [inputs[n] for n in case.differentiable]
    grads = torch.autograd.grad(outputs[0].float().sum(), leaves)
    peak = torch.cuda.max_memory_allocated() - before
    results = sum(t.numel() * t.element_size() for t in (*outputs, *grads))
    assert peak - results < 256 * MB + 16 * MB, f"{(peak - results) / MB:.0f} MB"


@needs_gpu
@pytest.mark.parametrize(("classes", "width"), [(1_060_000, 2048), (4_200_000, 512)])
def test_banks_beyond_32_bit_indices(classes, width):
    """The last rows of a bank of more than 2^31 elements are found, weighed and differentiated."""
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free GPU memory")
    assert classes * width > 2**31
    generator = torch.Generator("cuda").manual_seed(1)
    bank = torch.empty(classes, width, dtype=torch.bfloat16, device="cuda")
    bank.normal_(generator=generator)
    own = torch.tensor([0, classes // 2, classes - 1], device="cuda")
    x = bank[own].clone()
    distance, index = ops.nearest_centroid(x, bank)
    assert torch.equal(index, own) and (distance == 0).all()
    weight = bank.requires_grad_()
    loss = ops.cosine_cross_entropy(x, weight, own, scale=40.0)
    assert loss < 0.01
    bias = torch.zeros(classes, dtype=torch.bfloat16, device="cuda")
    out = ops.memory_attention(x, bank.detach(), bias, bank.detach())
    assert relative_error(out, x) < 1e-2
    loss.backward()
    norms = weight.grad[own].float().norm(dim=1)
    assert torch.isfinite(norms).all() and (norms > 0).all()


@needs_gpu
@pytest.mark.parametrize(
    "name", ["memory_attention", "nearest_centroid", "meta_embedding", "cosine_cross_entropy"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 8), (64, 1000, 512), (130, 8142, 128), (1025, 20_001, 200)], ids=str
)
def test_a_fused_pass_gives_what_chunks_give(name, dtype, shape, monkeypatch):
    case = next(c for c in CASES if c.name == name)
    inputs = on_gpu(case, shape, dtype)
    fused = case.call(**inputs)
    monkeypatch.setenv("OLTR_EXT_CUDA_FUSED", "0")
    chunks = case.call(**inputs)
    for got, want in zip(fused, chunks, strict=True):
        if got.is_floating_point():
            assert relative_error(got, want) < (8e-3 if dtype == torch.bfloat16 else 1e-3)
        else:  # the same but where two are equally near in float32
            assert (got == want).double().mean() > 0.99


@needs_gpu
def test_out_of_memory_leaves_nothing_behind():
    x = torch.randn(64, 32, device="cuda")
    bank = torch.randn(50_000, 32, device="cuda")
    bias = torch.zeros(50_000, device="cuda")
    want = ops.memory_attention(x, bank, bias, bank)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1 * MB) / total)
    taken = []
    try:
        with pytest.raises(torch.OutOfMemoryError):  # what the cache still had
            while True:
                taken.append(torch.empty(2 * MB, dtype=torch.uint8, device="cuda"))
        held = torch.cuda.memory_allocated()
        # Its type is lost at the stable boundary, before torch 2.13 its message too.
        with pytest.raises(RuntimeError, match=r"memory|new_empty"):
            ops.memory_attention(x, bank, bias, bank)
        assert torch.cuda.memory_allocated() == held
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        taken.clear()
    assert torch.cuda.memory_allocated() == before
    assert torch.equal(ops.memory_attention(x, bank, bias, bank), want)


@needs_gpu
def test_labels_out_of_range_make_nan():
    """Reading them would wait for the GPU; they are never used as an index."""
    x = torch.randn(3, 5, device="cuda", requires_grad=True)
    bank = torch.randn(4, 5, device="cuda", requires_grad=True)
    for bad in (-1, 4, 2**40):
        target = torch.tensor([1, bad, 2], device="cuda")
        loss = ops.cosine_cross_entropy(x, bank, target, reduction="none")
        assert loss.isnan().tolist() == [False, True, False]
        assert torch.autograd.grad(loss.sum(), bank)[0].isnan().any()
        assert ops.disc_centroids_loss(x, target, bank).isnan()
        assert ops.class_means(x, target, 4)[0].isnan().all()


@needs_gpu
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_bad_prior_makes_nan(bad):
    x, bank = torch.randn(3, 5, device="cuda"), torch.randn(4, 5, device="cuda")
    prior = torch.ones(4, device="cuda")
    prior[2] = bad
    target = torch.zeros(3, dtype=torch.int64, device="cuda")
    assert ops.cosine_cross_entropy(x, bank, target, class_prior=prior).isnan()


@needs_gpu
def test_high_precision_is_between_exact_and_medium():
    case = next(c for c in CASES if c.name == "cosine_logits")
    inputs = on_gpu(case, (128, 1000, 512))
    want = run(case, cast(inputs, torch.float64, case, device="cuda"), "reference")["out0"]
    errors = []
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            errors.append(relative_error(run(case, inputs)["out0"], want))
        finally:
            torch.set_float32_matmul_precision("highest")
    # The library may take bfloat16 under "medium", it does not have to.
    assert errors[0] < 1e-5 < errors[1] < 5e-3 and errors[2] < 2e-2, errors


@needs_gpu
def test_cpu_and_gpu_agree():
    for case in CASES:
        made = case.make(37, 501, 65)
        cpu = run(case, cast(made, torch.float32, case))
        gpu = run(case, cast(made, torch.float32, case, device="cuda"))
        for name in cpu:
            assert relative_error(gpu[name], cpu[name]) < 5e-5, (case.name, name)


@needs_gpu
def test_the_fallback_was_not_what_ran():
    x = torch.randn(2, 3, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        with use_backend("native"):
            ops.nearest_centroid(x, x)
        torch.cuda.synchronize()
    assert any("bank_forward_kernel" in e.key for e in seen.key_averages())


@needs_gpu
def test_other_devices_are_refused_by_name():
    x, bank = torch.randn(2, 3, device="cuda"), torch.randn(4, 3)
    with pytest.raises(ValueError, match="expected memory on cuda"):
        ops.nearest_centroid(x, bank)


def test_import_without_a_gpu_to_see():
    """A machine whose GPUs are hidden, or that has none, imports and runs on the CPU."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch; from oltr_ext import ops; "
            "print(ops.nearest_centroid(torch.ones(1, 2), torch.zeros(1, 2)).distance.item())",
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("1.41"), done.stderr
