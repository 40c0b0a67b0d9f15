"""What every op must hold to: values and gradients against float64, and the rules of the house."""

from __future__ import annotations

import importlib

import pytest
import torch
from op_cases import BY_NAME, CASES, DEVICES, Case, cast, relative_error, run
from torch.autograd import forward_ad
from torch.library import opcheck

from oltr_ext import ops, use_backend
from oltr_ext.ops._backend import INSTRUCTION_SETS, OPS

SHAPES = [(1, 1, 16), (3, 2, 1), (5, 7, 17), (16, 65, 33), (65, 300, 40), (64, 1000, 512)]
every_op = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
every_device = pytest.mark.parametrize("device", DEVICES)


def test_every_op_has_a_case():
    assert [c.name for c in CASES] == list(OPS)


@every_device
@every_op
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-11)], ids=["f32", "f64"]
)
def test_value_and_gradient_against_float64(case: Case, shape, dtype, bound, device):
    inputs = cast(case.make(*shape), dtype, case, device=device)
    want = run(case, cast(inputs, torch.float64, case), "reference")
    got = run(case, inputs)
    for name in want:
        assert got[name].dtype in (dtype, want[name].dtype), name
        assert relative_error(got[name], want[name]) < bound, name


@every_device
@every_op
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=["bf16", "f16"]
)
def test_half_precision_accumulates_in_float32(case: Case, dtype, bound, device):
    inputs = cast(case.make(9, 130, 48), dtype, case, device=device)
    want = run(case, cast(inputs, torch.float64, case), "reference")
    for name, got in run(case, inputs).items():
        assert relative_error(got, want[name]) < bound, name


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa, run_python):
    """The choice is made once per process, so each instruction set runs in its own."""
    _C = pytest.importorskip("oltr_ext._C")
    found = _C.cpu_features()
    if not {**found, "avx512": found.get("avx512f"), "generic": True}[isa]:
        pytest.skip(f"this processor has no {isa}")
    run_python(
        "import torch\n"
        "from oltr_ext import _C\n"
        f"assert _C.cpu_features()['isa'] == {isa!r}\n"
        "from op_cases import CASES, cast, relative_error, run\n"
        "torch.manual_seed(1)\n"
        "for case in CASES:\n"
        "    for shape in [(5, 7, 17), (33, 130, 40)]:\n"
        "        inputs = cast(case.make(*shape), torch.float32, case)\n"
        "        want = run(case, cast(inputs, torch.float64, case), 'reference')\n"
        "        for name, got in run(case, inputs).items():\n"
        "            assert relative_error(got, want[name]) < 2e-5, (case.name, shape, name)\n",
        OLTR_EXT_CPU=isa,
    )


def test_gradients_larger_than_huge_pages_are_written_whole():
    """Beyond 32 MB the memory of an output is asked for in pieces; none may be left out."""
    classes, width = 140_001, 61
    inputs = [torch.randn(3, width), torch.randn(classes, width), torch.randn(classes, width)]
    inputs = [t.requires_grad_() for t in inputs]
    bias = torch.zeros(classes, requires_grad=True)
    grads = {}
    for backend in ("native", "reference"):
        with use_backend(backend):
            x, keys, memory = inputs
            out = ops.memory_attention(x, keys, bias, memory)
            grads[backend] = torch.autograd.grad(out.square().sum(), (*inputs, bias))
    for got, want in zip(grads["native"], grads["reference"], strict=True):
        assert (got - want).abs().max() < 1e-4 * want.abs().max()


@every_device
@every_op
def test_gradcheck(case: Case, device):
    inputs = cast(case.make(4, 5, 6), torch.float64, case, device=device)
    names = case.differentiable

    def function(*leaves):
        outputs = case.call(**{**inputs, **dict(zip(names, leaves, strict=True))})
        return tuple(o for o in outputs if o.is_floating_point())

    assert torch.autograd.gradcheck(function, tuple(inputs[n] for n in names))


def _raw_arguments(name: str, device: str) -> tuple:
    case = BY_NAME[name]
    i = cast(case.make(6, 9, 11), torch.float32, case, device=device)
    extra = {
        "memory_attention": (True, "highest"),
        "nearest_centroid": ("highest",),
        "meta_embedding": (10.0, 1e-6, True, "highest"),
        "cosine_logits": (16.0, "highest"),
        "cosine_cross_entropy": (16.0, 0.1, -100, -1, "highest"),
        "disc_centroids_loss": (1e3, 0.5, False),
    }.get(name, ())
    order = {
        "meta_embedding": ("x", "memory", "keys", "key_bias", "selector_weight", "selector_bias")
    }.get(name, tuple(i))
    values = [i[n].log() if n == "class_prior" else i[n] for n in order]
    return (*values, *extra)


@every_device
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, device):
    opcheck(getattr(torch.ops.oltr_ext, name).default, _raw_arguments(name, device))


@every_device
@pytest.mark.parametrize("name", OPS)
def test_opcheck_backward(name, device):
    """The backward op is an op of its own: schema and fake tensors must hold for it too."""
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == f"oltr_ext::{name}_backward":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    outputs = getattr(torch.ops.oltr_ext, name)(*_raw_arguments(name, device))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(o.sum() for o in outputs if o.requires_grad)
    with Spy():
        total.backward()
    func, args = seen[0]
    detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
    opcheck(func, detached, test_utils=("test_schema", "test_faketensor"))


@every_device
@every_op
def test_fullgraph_compile(case: Case, device):
    inputs = cast(case.make(6, 9, 11), torch.float32, case, device=device)
    want = run(case, inputs)
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    got = run(Case(case.name, case.make, compiled, case.differentiable), inputs)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


@every_device
def test_fullgraph_compile_where_options_change(device):
    x, w = torch.randn(4, 6, device=device), torch.randn(5, 6, device=device)
    target = torch.tensor([0, 4, 2, 2], device=device)

    def call(scale, smoothing, margin):
        loss = ops.cosine_cross_entropy(x, w, target, scale=scale, label_smoothing=smoothing)
        return loss + ops.disc_centroids_loss(x, target, w, margin=margin)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for options in ((16.0, 0.1, 10.0), (20.0, 0.2, 30.0), (24.0, 0.0, 5.0)):
        torch.testing.assert_close(compiled(*options), call(*options))


@every_device
@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_any_offset(case: Case, dtype, device):
    """Contiguous rows that start where no vector load may."""
    inputs = cast(case.make(6, 9, 32), dtype, case, device=device)
    moved = dict(inputs)
    for name in case.differentiable:
        t = inputs[name].detach()
        storage = torch.full([t.numel() + 1], torch.nan, device=device, dtype=t.dtype)
        moved[name] = storage[1:].view(t.shape).copy_(t).requires_grad_()
    want, got = run(case, inputs), run(case, moved)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@every_device
@every_op
def test_any_strides(case: Case, device):
    inputs = cast(case.make(6, 9, 11), torch.float32, case, device=device)
    want = run(case, inputs)
    strided = dict(inputs)
    for name in case.differentiable:
        t = inputs[name].detach()
        wide = torch.full([2 * n for n in t.shape], float("nan"), device=device)
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)]
        view.copy_(t)
        if t.dim() == 2:
            view = view.t().contiguous().t()[:, :]
        assert not view.is_contiguous() or t.dim() == 1
        strided[name] = view.requires_grad_()
    if "target" in strided:
        strided["target"] = strided["target"].repeat_interleave(3)[::3]
    got = run(case, strided)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@every_device
@every_op
def test_expanded_gradient(case: Case, device):
    """sum() sends back an expanded scalar: zero strides."""
    inputs = cast(case.make(6, 9, 11), torch.float32, case, device=device)
    leaves = [inputs[n] for n in case.differentiable]
    first = torch.autograd.grad(case.call(**inputs)[0].sum(), leaves, allow_unused=True)
    with use_backend("reference"):
        second = torch.autograd.grad(case.call(**inputs)[0].sum(), leaves, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_device
@every_op
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_empty_batch(case: Case, backend, device):
    inputs = cast(case.make(0, 4, 5), torch.float32, case, device=device)
    for name, value in run(case, inputs, backend).items():
        assert torch.isfinite(value).all(), name
        if name.startswith("grad_"):
            assert (value == 0).all(), name


@every_op
@pytest.mark.parametrize("shape", [(3, 5, 8), (130, 700, 24)], ids=str)
def test_same_bits_at_any_thread_count(case: Case, shape):
    inputs = cast(case.make(*shape), torch.float32, case)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(case, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name in other:
            assert torch.equal(other[name], results[0][name]), name


@every_op
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_same_bits_each_time(case: Case, backend):
    # rows of few classes, enough for torch to sum a gradient of `memory[index]` by threads
    inputs = cast(case.make(128, 5, 512), torch.float32, case)
    first = run(case, inputs, backend)
    for _ in range(20):
        for name, value in run(case, inputs, backend).items():
            assert torch.equal(value, first[name]), name


@every_device
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    "name", ["memory_attention", "nearest_centroid", "meta_embedding", "cosine_logits"]
)
def test_nan_stays_in_its_row(name, backend, device):
    case = BY_NAME[name]
    inputs = cast(case.make(40, 90, 12), torch.float32, case, grad=False, device=device)
    first = case.differentiable[0]
    with use_backend(backend):
        clean = case.call(**inputs)
        inputs[first][17, 3] = float("nan")
        dirty = case.call(**inputs)
    others = torch.arange(40) != 17
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[others], b[others])
        if b.is_floating_point():
            assert b[17].isnan().all() or name == "meta_embedding"
    assert dirty[0][17].isnan().all()


@every_device
@every_op
def test_autocast(case: Case, device):
    inputs = cast(case.make(6, 9, 16), torch.float32, case, device=device)
    lower = case.name in ("memory_attention", "cosine_logits")
    for backend in ("native", "reference"):
        with torch.autocast(device, torch.bfloat16), use_backend(backend):
            first = case.call(**inputs)[0]
        assert first.dtype == (torch.bfloat16 if lower else torch.float32)
        leaf = inputs[case.differentiable[0]]
        (grad,) = torch.autograd.grad(first.float().sum(), leaf)
        assert grad.dtype == torch.float32


@every_device
@every_op
def test_autocast_takes_mixed_dtypes(case: Case, device):
    """Under autocast the features come in half precision and the banks in float32."""
    inputs = cast(case.make(6, 9, 16), torch.float32, case, device=device)
    lead = case.differentiable[0]
    inputs[lead] = inputs[lead].detach().bfloat16()
    with torch.autocast(device, torch.bfloat16):
        assert torch.isfinite(case.call(**inputs)[0].float()).all()


@every_op
@pytest.mark.filterwarnings("ignore:oltr_ext runs")
def test_other_ways_to_differentiate_go_to_the_reference(case: Case):
    """Natively they would give zeros without a word."""
    inputs = case.make(3, 5, 4)
    names = case.differentiable

    def call(*leaves):
        return case.call(**{**inputs, **dict(zip(names, leaves, strict=True))})[0]

    leaves = tuple(inputs[n].detach() for n in names)
    with pytest.raises(RuntimeError, match=r"no forward-mode AD.*use_backend"):
        torch.func.jvp(call, leaves, leaves)
    with use_backend("auto"):
        jacobians = torch.func.jacrev(call, argnums=tuple(range(len(leaves))))(*leaves)
        parts = [j * leaf for j, leaf in zip(jacobians, leaves, strict=True)]
        each = torch.stack([leaves[0], 2 * leaves[0]])
        batched = torch.func.vmap(lambda lead: call(lead, *leaves[1:]))
        grad = torch.func.grad(lambda lead: batched(lead).sum())(each)
        torch.testing.assert_close(
            grad[0], torch.func.grad(lambda v: call(v, *leaves[1:]).sum())(leaves[0])
        )
        rank = call(*leaves).dim()
        want = torch.stack([p.flatten(rank).sum(-1) for p in parts]).sum(0)
        assert want.abs().max() > 0
        torch.testing.assert_close(torch.func.jvp(call, leaves, leaves)[1], want)
        with forward_ad.dual_level():
            dual = call(*(forward_ad.make_dual(leaf, leaf) for leaf in leaves))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, want)


@pytest.mark.parametrize("op", ["cosine_cross_entropy", "disc_centroids_loss", "official"])
def test_gradients_of_each_row(op):
    """By vmap over grad, in the reference, which then cannot look at labels."""
    v, w, t = torch.randn(6, 4), torch.randn(5, 4), torch.arange(6) % 5
    prior = torch.arange(5.0) + 1

    def loss(w, v, t):
        if op == "cosine_cross_entropy":
            return ops.cosine_cross_entropy(v, w, t, class_prior=prior, label_smoothing=0.1)
        compat = "official" if op == "official" else "fixed"
        return ops.disc_centroids_loss(v, t, w, margin=100.0, compat=compat)

    with use_backend("reference"):
        each = torch.func.vmap(
            torch.func.grad(lambda w, v, t: loss(w, v[None], t[None])), in_dims=(None, 0, 0)
        )(w, v, t)
        for row, grad in enumerate(each):
            leaf = w.clone().requires_grad_()
            loss(leaf, v[row : row + 1], t[row : row + 1]).backward()
            torch.testing.assert_close(grad, leaf.grad)
        with pytest.raises(RuntimeError, match="got 7 at row 1"):  # unmapped labels are read
            torch.func.grad(loss)(w, v, torch.tensor([0, 7, 0, 0, 0, 0]))


@every_device
@every_op
def test_double_backward_is_refused(case: Case, device):
    inputs = cast(case.make(4, 5, 6), torch.float32, case, device=device)
    leaf = inputs[case.differentiable[0]]
    (grad,) = torch.autograd.grad(case.call(**inputs)[0].square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@every_device
@every_op
def test_function_and_registered_formula_are_one(case: Case, device):
    module = importlib.import_module(f"oltr_ext.ops.{case.name}")
    functions = [
        f
        for f in vars(module).values()
        if isinstance(f, type) and issubclass(f, torch.autograd.Function)
    ]
    assert len(functions) == 1
    arguments = _raw_arguments(case.name, device)
    a = functions[0].apply(*arguments)
    b = getattr(torch.ops.oltr_ext, case.name)(*arguments)
    a, b = (t if isinstance(t, tuple) else (t,) for t in (a, b))
    leaves = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
    first = torch.autograd.grad(sum(o.sum() for o in a if o.requires_grad), leaves)
    second = torch.autograd.grad(sum(o.sum() for o in b if o.requires_grad), leaves)
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)
