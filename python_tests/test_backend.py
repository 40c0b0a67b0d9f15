"""Choosing the backend, and living without the native library."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch

import oltr_ext
from oltr_ext import ops
from oltr_ext.ops import _backend
from oltr_ext.ops._compile import untraced


def test_context_manager_restores():
    before = oltr_ext.backend()
    with pytest.raises(KeyError), oltr_ext.use_backend("reference"):
        assert oltr_ext.backend() == "reference"
        raise KeyError
    assert oltr_ext.backend() == before == "native"


def test_unknown_name():
    with pytest.raises(ValueError, match="expected one of auto, native, reference, got 'gpu'"):
        oltr_ext.use_backend("gpu").__enter__()


def test_unknown_environment_value(run_python):
    code = (
        "import torch\nfrom oltr_ext import ops\n"
        "try:\n    ops.nearest_centroid(torch.ones(1, 2), torch.ones(1, 2))\n"
        "except ValueError as e:\n    print(e)\n"
    )
    assert "OLTR_EXT_BACKEND: expected one of" in run_python(code, OLTR_EXT_BACKEND="fast")


def test_native_runs_the_native_op():
    x, m = torch.randn(3, 4), torch.randn(5, 4)
    with torch.profiler.profile() as profile:
        ops.nearest_centroid(x, m)
        with oltr_ext.use_backend("reference"):
            ops.nearest_centroid(x, m)
    names = [e.name for e in profile.events()]
    assert names.count("oltr_ext::nearest_centroid") == 1
    assert _backend.STATUS.cpu_error is None


def test_the_choice_is_a_thread_s_own():
    """Blocks that overlap without nesting, in two threads, each keep their choice and no more."""
    steps = [threading.Barrier(2, timeout=60) for _ in range(3)]
    seen = {}

    def first():
        with oltr_ext.use_backend("reference"):
            steps[0].wait()
            steps[1].wait()  # the other block has begun
            seen["first"] = oltr_ext.backend()
        steps[2].wait()  # and this one has ended

    def second():
        steps[0].wait()
        with oltr_ext.use_backend("auto"):
            steps[1].wait()
            steps[2].wait()
            seen["second"] = oltr_ext.backend()
        seen["after"] = oltr_ext.backend()

    with oltr_ext.use_backend("auto"), ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
        assert oltr_ext.backend() == "auto"
    assert seen == {"first": "reference", "second": "auto", "after": "native"}
    assert oltr_ext.backend() == "native"


def test_blocks_of_one_thread_that_do_not_nest():
    """As coroutines have them, or generators."""
    first, second = oltr_ext.use_backend("reference"), oltr_ext.use_backend("auto")
    first.__enter__()
    second.__enter__()
    with pytest.raises(RuntimeError, match=r"use_backend\('reference'\): expected .* to nest"):
        first.__exit__(None, None, None)
    assert oltr_ext.backend() == "native"
    with pytest.raises(RuntimeError, match=r"use_backend\('auto'\): expected .* to nest"):
        second.__exit__(None, None, None)
    assert oltr_ext.backend() == "native"


def test_compiled_code_follows_the_choice():
    """The choice made around it, in whichever thread, and the one made within."""
    x, m = torch.randn(3, 4), torch.randn(5, 4)
    natives = []

    def count(graph, inputs):
        natives.append(sum("oltr_ext" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    def both(x):
        with oltr_ext.use_backend("reference"):
            first = ops.nearest_centroid(x, m).distance
        return first, ops.nearest_centroid(x, m).distance, ops.nearest_centroid(x, m).index

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend=count)
    compiled(x)
    with oltr_ext.use_backend("reference"):
        compiled(x)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(compiled, x).result()  # has the choice it started with, and its graph
    compiled(x)
    assert natives == [2, 0]
    assert oltr_ext.backend() == "native"


def test_what_a_block_computed_goes_backward_by_its_formulas():
    """In any thread: autograd's own have none of the choice."""
    x, m = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    with oltr_ext.use_backend("reference"):
        loss = ops.nearest_centroid(x, m).distance.sum()

    def backward():
        with torch.profiler.profile() as profile:  # sees its thread
            loss.backward()
        return " ".join(e.name for e in profile.events())

    with ThreadPoolExecutor(1) as pool:
        names = pool.submit(backward).result()
    assert "LinalgVectorNormBackward" in names and "oltr_ext" not in names


@pytest.fixture
def old_gpu(monkeypatch):
    """A GPU that the library has no code for, as far as the choice of the backend can see."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(_backend, "cuda_archs", lambda: "8.0;9.0;12.0+PTX")
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setattr(_backend, "_transformed", lambda tensors: False)  # takes no mock
    _backend._gpu_error.cache_clear()
    yield
    _backend._gpu_error.cache_clear()


def test_a_gpu_that_nothing_was_built_for(old_gpu):
    x = torch.empty(3, 4, device="meta")
    on_gpu = mock.Mock(device=torch.device("cuda", 1), requires_grad=False)
    reason = r"built for 8\.0;9\.0;12\.0\+PTX, not for sm_75 \(1\)"
    with pytest.raises(RuntimeError, match=reason):
        _backend.use_native("nearest_centroid", on_gpu)
    with oltr_ext.use_backend("auto"), pytest.warns(RuntimeWarning, match=reason):
        assert not _backend.use_native("nearest_centroid", on_gpu)
    assert _backend.use_native("nearest_centroid", x)


@pytest.fixture
def bare_package(tmp_path):
    """The Python sources alone, as an installation whose build failed leaves them."""
    source = Path(oltr_ext.__file__).parent
    shutil.copytree(source, tmp_path / "oltr_ext", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    return str(tmp_path)


def test_without_the_library(bare_package, run_python):
    code = (
        f"import sys; sys.path.insert(0, {bare_package!r})\n"
        "import warnings, torch\nimport oltr_ext, oltr_ext.nn\nfrom oltr_ext import ops\n"
        f"assert oltr_ext.__file__.startswith({bare_package!r})\n"
        "x = torch.randn(3, 4, requires_grad=True); m = torch.randn(5, 4)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    ops.nearest_centroid(x, m).distance.sum().backward()\n"
        "    ops.nearest_centroid(x, m); ops.class_means(x, torch.tensor([0, 1, 1]), 2)\n"
        "print(len(seen), seen[0].message)\n"
        "try:\n"
        "    with oltr_ext.use_backend('native'): ops.nearest_centroid(x, m)\n"
        "except RuntimeError as e: print(e)\n"
    )
    out = run_python(code, OLTR_EXT_BACKEND="auto").splitlines()
    assert out[0].startswith("1 oltr_ext runs nearest_centroid in pure PyTorch: _oltr_cpu was not")
    assert "the native backend was asked for but cannot run" in out[1] and "reinstall" in out[1]


def test_a_broken_library_does_not_break_import(bare_package, run_python):
    (Path(bare_package) / "oltr_ext" / "_oltr_cpu.abi3.so").write_bytes(b"not a library")
    code = (
        f"import sys; sys.path.insert(0, {bare_package!r})\n"
        "import oltr_ext\nfrom oltr_ext.ops._backend import STATUS\nprint(STATUS.cpu_error)"
    )
    assert "_oltr_cpu.abi3.so did not load under torch" in run_python(code)


def test_import_leaves_the_compiler_alone(run_python):
    run_python("import sys, oltr_ext.nn\nassert 'torch._dynamo' not in sys.modules")


def test_what_is_not_traced_runs_as_it_is():
    traced = untraced(lambda x: x + torch.compiler.is_compiling())
    compiled = torch.compile(lambda x: 2 * traced(x), backend="eager")
    assert compiled(torch.zeros(())) == 0


def test_an_unknown_instruction_set_is_told(run_python):
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import oltr_ext\n"
        "print([str(w.message) for w in seen if 'OLTR_EXT_CPU' in str(w.message)])\n"
        "print(oltr_ext.nn.OLTRHead.__name__, oltr_ext.engine.__name__)\n"
    )
    told = run_python(code, OLTR_EXT_CPU="avx").splitlines()
    known = _backend.INSTRUCTION_SETS
    assert f"expected one of {', '.join(known)}, got 'avx'" in told[0]
    assert told[1] == "OLTRHead oltr_ext.engine"
    assert all(run_python(code, OLTR_EXT_CPU=isa).startswith("[]") for isa in known[-2:])


def test_a_compiled_call_has_the_same_bits_each_time():
    # Compiled sums of torch's own have not: findings/compiled-class-sums.sh
    rows, labels = torch.randn(20_000, 16), torch.randint(10, (20_000,))
    means = torch.compile(lambda x: ops.class_means(x, labels, 10)[0] * 2)
    first = means(rows)
    assert all(torch.equal(means(rows), first) for _ in range(20))
