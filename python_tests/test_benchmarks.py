"""The benchmarks measure the right thing: peers agree with the reference, floors with the text."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oltr_ext import use_backend

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import augment_picture  # noqa: E402
import collect  # noqa: E402
import cost_model  # noqa: E402
import errors  # noqa: E402
import floors  # noqa: E402
import harness  # noqa: E402
import machine  # noqa: E402
import peak_memory  # noqa: E402
import peaks  # noqa: E402
import plots  # noqa: E402
import speeds  # noqa: E402
import table  # noqa: E402
from cases import Case  # noqa: E402
from peers import PEERS  # noqa: E402
from workloads import WORKLOADS, caller  # noqa: E402

B, C, D = 6, 11, 5
NAMED = [
    # KeOps compiles each formula for seconds.
    pytest.param(op, name, marks=[pytest.mark.slow] if peer.module == "pykeops" else [])
    for op, peers in PEERS.items()
    for name, peer in peers.items()
    if not peer.gpu
]
ON_GPU = [(op, name) for op, peers in PEERS.items() for name, peer in peers.items() if peer.gpu]


@pytest.mark.parametrize(("op", "name"), NAMED)
def test_peer_gives_outputs_and_gradients_of_the_reference(op, name):
    peer, workload = PEERS[op][name], WORKLOADS[op]
    if peer.module:
        pytest.importorskip(peer.module)
    mode, dtype = ("full", torch.float64) if peer.grad else ("forward", torch.float32)
    inputs = workload.inputs(B, C, D, dtype, peer.grad)
    shape = workload.shape(B, C, D)
    got = caller(peer.call, inputs, mode, shape)()
    with use_backend("reference"):
        want = caller(workload.ours, inputs, mode, shape)()
    if isinstance(want, torch.Tensor):
        got, want = (got,), (want,)
    torch.testing.assert_close(tuple(got), tuple(want))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("op", "name"), ON_GPU)
def test_peer_on_a_gpu_gives_outputs_and_gradients_of_the_reference(op, name):
    peer, workload = PEERS[op][name], WORKLOADS[op]
    if lacks := peer.lacks("full", torch.bfloat16):
        pytest.skip(lacks)
    with torch.device("cuda"):
        inputs = workload.inputs(32, 200, 64, torch.bfloat16, True)
    shape = workload.shape(32, 200, 64)
    got = caller(peer.call, inputs, "full", shape)()
    with use_backend("reference"):
        want = caller(workload.ours, inputs, "full", shape)()
    for ours, theirs in zip(want, got, strict=True):
        bound = 3e-2 * max(1.0, ours.abs().max().item())
        assert (theirs.double() - ours.double()).abs().max().item() < bound


def test_modes_of_a_call_agree():
    workload = WORKLOADS["meta_embedding"]
    inputs = workload.inputs(B, C, D, torch.float64, True)
    calls = {m: caller(workload.ours, inputs, m, (B, D)) for m in ("forward", "backward", "full")}
    output, *grads = calls["full"]()
    torch.testing.assert_close(output, calls["forward"]())
    for _ in range(2):  # the graph is kept, and nothing is added up
        torch.testing.assert_close(tuple(grads), calls["backward"]())


def test_what_cannot_run_says_why():
    released = PEERS["meta_embedding"]["released"]
    assert released.why_not("full", 256, 1000, 512, torch.float32) == ""
    assert released.why_not("full", 256, 8142, 512, torch.float32) == "needs 4.3 GB for one tensor"
    liger = PEERS["cosine_cross_entropy"]["liger"]
    assert liger.why_not("full", B, C, D, torch.float32) == "runs on a GPU alone"
    faiss = PEERS["nearest_centroid"]["faiss"]
    assert faiss.why_not("full", B, C, D, torch.float32) in (
        "has no backward",
        "faiss is not installed",
    )


def test_floors():
    product, square = B * C * D, B * D * D
    for op, forward, full in (
        ("memory_attention", 4 * product, 14 * product),
        ("nearest_centroid", 2 * product, 2 * product),
        ("meta_embedding", 6 * product + 2 * square, 16 * product + 6 * square),
        ("cosine_logits", 2 * product, 6 * product),
        ("cosine_cross_entropy", 2 * product, 8 * product),
        ("training_step", 8 * product + 2 * square, 22 * product + 6 * square),
    ):
        assert floors.floor(op, "forward", B, C, D).flops == forward
        assert floors.floor(op, "full", B, C, D).flops == full
    least = floors.floor("disc_centroids_loss", "forward", B, C, D)
    assert least == (0, 4 * (B * D + C * D))
    assert least.seconds(1, 1) == pytest.approx(4e-9 * (B * D + C * D))
    assert set(WORKLOADS) == set(PEERS)


def test_what_a_dtype_is_held_to():
    tiles, none = {"fp32_gflops": 2.0, "bf16_gflops": 9.0}, {"fp32_gflops": 2.0, "bf16_gflops": 0.0}
    got = {dtype: floors.rate(dtype, tiles) for dtype in ("float32", "high", "medium", "bfloat16")}
    assert got == {"float32": 2, "high": 3, "medium": 9, "bfloat16": 9}
    assert {floors.rate(dtype, none) for dtype in got} == {2}
    assert floors.rate("high", {"fp32_gflops": 2.0, "bf16_gflops": 3.0}) == 2


def test_errors_count_in_units_of_the_last_place():
    exact = torch.tensor([0.5, -3.0], dtype=torch.float64)
    assert errors.units(exact.bfloat16(), exact, torch.bfloat16) == 0
    assert errors.units((exact + 2**-6).bfloat16(), exact, torch.bfloat16) == 1
    assert errors.units(exact + 2**-6, exact, torch.bfloat16) == 1
    assert errors.units(torch.tensor([0.0, float("nan")]), exact, torch.float32) == float("inf")
    assert errors.units(torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.float32) == 0


def test_errors_see_outputs_and_gradients():
    """Ours against the reference in float64; a gradient that is wrong alone is seen in full."""
    workload = WORKLOADS["cosine_logits"]

    def stray(v, weight):
        return PEERS["cosine_logits"]["eager"].call(v + (v - v.detach()), weight)

    calls = {"": workload.ours, "stray": stray}
    for dtype in ("float32", "bfloat16"):
        forward = errors.errors(workload, Case("forward", 20, 40, 16, dtype), calls)
        full = errors.errors(workload, Case("full", 20, 40, 16, dtype), calls)
        assert forward[""] < 4 and full[""] < 8 and forward["stray"] < 9
        assert full["stray"] > 50
    assert errors.errors(workload, Case("full", 64, 10**6, 512), calls) == {}


def test_the_readme_has_the_table_of_speeds(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(speeds.README.read_text())
    speeds.write(readme)
    assert readme.read_text() == speeds.README.read_text()
    rows = speeds.lines()
    assert len(rows) > 8 and all(row.count("|") == rows[0].count("|") for row in rows)
    folder = tmp_path / "results" / next(iter(speeds.MAKES.values()))
    folder.mkdir(parents=True)
    timed = {"median_s": 2.0}
    row = {"op": "meta_embedding", "mode": "full", "dtype": "bfloat16", "B": 256, "C": 1000,
           "D": 512, "ours": timed, "peers": {"eager": {"median_s": 0.003}}, "best_peer": "eager",
           "share_of_floor": 0.5, "others_cpu": 0.0}  # fmt: skip
    (folder / "meta_embedding.json").write_text(json.dumps({"records": [row]}))
    (got,) = speeds.lines(tmp_path / "results")[2:]
    assert got == "| 256 x 1,000 x 512 | bfloat16 | - | 2,000 / 3, 50 % | - | - |\n"
    row["others_cpu"] = 1
    (folder / "meta_embedding.json").write_text(json.dumps({"records": [row]}))
    assert len(speeds.lines(tmp_path / "results")) == 2  # measured beside others: no result


def test_peaks_are_rates():
    assert peaks.fp32_gflops() > 1
    assert peaks.bf16_gflops() >= 0
    assert peaks.read_gbytes(peaks.buffer(0)) > 0.1


def test_machine_names_no_host():
    facts = machine.machine()
    assert facts["slug"].endswith(f"-{torch.get_num_threads()}-threads")
    assert os.uname().nodename not in json.dumps(facts).split('"')
    assert machine.watch_others()() >= 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_the_matrix_of_the_eager_peer():
    case = Case("forward", 256, 40_000, 16)
    logits = 4 * 256 * 40_000  # 41 MB
    assert peak_memory.measure("memory_attention", case, "eager") > logits
    assert peak_memory.measure("memory_attention", case) < logits / 2


def test_instruction_sets_and_checkouts_side_by_side(tmp_path):
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, BENCHMARKS / "by_isa.py", "2x3x16", "--rounds", "1"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True)

    for choice, name in (("--isas", "generic"), ("--trees", str(BENCHMARKS.parent))):
        done = run(choice, name)
        assert done.returncode == 0, done.stderr
        head, _, row = done.stdout.splitlines()
        assert head == f"| meta_embedding | dtype | {name} |"
        assert row.startswith("| 2x3x16 | bfloat16 |")
        for cell in row.split("|")[3].split("/"):  # of one round
            median, quickest = cell.split()
            assert float(median) > 0 and quickest == f"({median})"
    done = run("--isas", "none")
    assert done.returncode != 0 and "this processor has no none" in done.stderr
    (tmp_path / "oltr_ext").mkdir()
    (tmp_path / "oltr_ext" / "__init__.py").touch()
    done = run("--trees", tmp_path)
    assert done.returncode != 0 and f"built in place, no _C in {tmp_path}" in done.stderr


@pytest.mark.slow
def test_a_suite_runs_and_is_drawn(tmp_path):
    raw = tmp_path / "training_step.json"
    # Beside an xdist worker pytest-benchmark would not measure at all.
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", BENCHMARKS / "bench_training_step.py", "--smoke",
         "--quick", "-p", "no:cacheprovider", f"--benchmark-json={raw}"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**outside, "OLTR_EXT_BACKEND": "native"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder = collect.collect(raw, tmp_path / "results")
    record = table.load(folder)["training_step"]["records"][0]
    assert record["ours"]["rounds"] >= harness.LEAST_ROUNDS
    assert record["best_peer"] == "eager" and record["ratio"] > 0
    assert set(record["baselines"]) == {"linear + cross-entropy", "cosine, eager"}
    figures = plots.draw(folder)
    assert figures == ["training_step.png"] and (folder / figures[0]).stat().st_size > 1000
    assert "| 2x10x16 |" in table.page(folder, figures)

    # peak memory stays until it is measured again, and says of when it is
    file = folder / "training_step.json"
    before = json.loads(file.read_text())
    before["commit"] = {"id": "0123456789abcdef", "dirty": True}
    for of in before["records"]:
        of["memory"] = {"": 5e6}
    file.write_text(json.dumps(before))
    for _ in range(2):
        collect.collect(raw, tmp_path / "results")
        after = json.loads(file.read_text())
        assert after["commit"]["id"] != "0123456789abcdef"
        assert all(of["memory"] == {"": 5e6} for of in after["records"])
        assert "Memory as of 0123456789ab with changes." in table.page(folder, figures)
    measured = {"test": before["records"][0]["test"], "memory": {"": 6e6}}
    collect.keep_memory({"records": [measured]}, after)
    assert measured["memory"] == {"": 6e6} and "memory_commit" not in measured


@pytest.fixture
def gpu_bench(monkeypatch):
    """The GPU's benchmark on the CPU: minutes on a GPU are too dear for typing errors."""
    import gpu_bench

    def microseconds(calls, rounds=0):
        for call in calls.values():
            call()
        return {name: {"median_us": 2.0, "iqr_us": 0.1} for name in calls}

    def peak_bytes(call):
        call()
        return 1 << 20

    for name, value in {
        "DEVICE": "cpu", "microseconds": microseconds, "peak_bytes": peak_bytes,
        "settle": lambda: None, "l2_bytes": lambda: 1 << 16, "graphed": lambda call: call,
    }.items():  # fmt: skip
        monkeypatch.setattr(gpu_bench, name, value)
    return gpu_bench


def test_gpu_bench_measures_every_case(gpu_bench):
    ceilings = {"bf16_tflops": 800.0, "copy_gbytes": 3000.0}
    seen = set()
    for op, mode, *_ in gpu_bench.CASES:
        if (op, mode) in seen:
            continue
        seen.add((op, mode))
        row = gpu_bench.measure(op, mode, 4, 40, 16, ceilings)
        assert row["ratio"] == 1.0 and row["share_of_floor"] > 0, (op, mode)
        packages = {name for name, peer in PEERS[op].items() if peer.module}
        assert set(row["unavailable"]) <= packages, row["unavailable"]
        json.dumps(row)
    assert (
        "ours, graph"
        in gpu_bench.measure("meta_embedding", "forward", 4, 40, 16, ceilings)["times"]
    )


def test_gpu_bench_keeps_what_there_is_when_a_part_fails(gpu_bench, monkeypatch):
    def fails():
        raise RuntimeError("no more memory")

    tiny = [(op, mode, 4, 40, 16, goal) for op, mode, *_, goal in gpu_bench.CASES[:2]]
    monkeypatch.setattr(gpu_bench, "CASES", tiny)
    monkeypatch.setattr(gpu_bench, "COMPILED", [("cosine_logits", "forward", 4, 40, 16)])
    monkeypatch.setattr(gpu_bench, "peaks", lambda: {"bf16_tflops": 800.0, "copy_gbytes": 3e3})
    monkeypatch.setattr(gpu_bench, "training_step", fails)
    monkeypatch.setattr(gpu_bench, "accuracy", lambda: [])
    monkeypatch.setattr(gpu_bench, "chunk_sizes", lambda: [])
    compile_eagerly = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_eagerly(f))
    saved = []
    gpu_bench.run(lambda found: saved.append(json.dumps(found)))
    assert len(saved) == 6  # after each part
    last = json.loads(saved[-1])
    assert last["meta_embedding forward 4x40x16"]["goal_us"] == 45
    assert last["training_step"] == {"error": "RuntimeError: no more memory"}
    assert "compiled" in " ".join(last["cosine_logits forward 4x40x16, compiled"]["times"])


def test_gpu_bench_other_parts(gpu_bench):
    step = gpu_bench.training_step(4, 40, 16)
    assert step["held_gb"] > 0 and step["peak_beyond_gb"] > 0
    rows = gpu_bench.accuracy(4, 40, 16)
    assert [r["nearest_found"] for r in rows] == [1.0] * 5
    assert rows[0]["attention"] < 1e-5 < rows[3]["attention"] < 2e-2
    chunks = gpu_bench.chunk_sizes([(4, 40, 16)])
    assert [r["chunk_mb"] for r in chunks] == [12, 24, 48, 96, 192]
    assert "OLTR_EXT_CUDA_CHUNK_MB" not in os.environ


def test_the_picture_of_the_presets(tmp_path):
    """Its rows are those of the data's page, each unlike the others; the file is small."""
    readme = (BENCHMARKS.parent / "oltr_ext/data/README.md").read_text()
    assert all(f"`{name}`" in readme for name in augment_picture.PRESETS)
    assert len(augment_picture.PRESETS) == 6
    pixels = np.add.outer(np.arange(40), np.arange(30))[..., None] * [1, 2, 3]
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    rows = [augment_picture.draws(tmp_path / "a.png", name) for name in augment_picture.PRESETS]
    assert len({np.stack(row).tobytes() for row in rows}) == 6
    augment_picture.draw(tmp_path / "drawn.jpg")
    committed = BENCHMARKS / "results" / "augment.jpg"
    assert Image.open(tmp_path / "drawn.jpg").size == Image.open(committed).size
    assert committed.stat().st_size < 150_000


def test_what_shared_classes_cost():
    """Bytes by formula are those counted, floors below times; of eight each has an eighth."""
    for row in cost_model.checked()[2:]:
        _, _, least, measured, _, formula, counted, _ = row.split("|")
        assert float(least) < float(measured) and float(formula) == float(counted)
    eight = cost_model.KINDS[0]
    one = eight._replace(processes=1)
    found, alone = (cost_model.cost(of, 256, 10**6, 64) for of in (eight, one))
    assert alone.network == 0 < found.network
    assert found.arithmetic == pytest.approx(alone.arithmetic / 8, rel=0.01)
    assert found.state == pytest.approx(alone.state / 8, rel=0.01)
    # of a number of a bank: bfloat16, its gradient, a master and its momentum
    assert alone.state == pytest.approx(3 * 10**6 * 64 * (2 + 2 + 4 + 4) / 1e9, rel=0.01)
    four = one._replace(size=4)
    assert cost_model.cost(four, 256, 10**6, 64).state == pytest.approx(alone.state, rel=0.01)
