"""What is claimed of the CUDA sources is claimed of these very ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import evidence  # noqa: E402
import gpu_check  # noqa: E402


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for folder in ("cuda", "common"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / "csrc" / folder)
    return tmp_path


def test_the_hash_is_of_contents_in_order(sources: Path):
    files = [p for f in ("common", "cuda") for p in (sources / "csrc" / f).iterdir()]
    by_hand = subprocess.run(
        ["sha256sum"],
        input=b"".join(p.read_bytes() for p in sorted(files, key=lambda p: str(p).encode())),
        capture_output=True,
    )
    assert evidence.cuda_sources(sources) == by_hand.stdout.split()[0].decode()


def test_the_hash_sees_one_byte(sources: Path):
    before = evidence.cuda_sources(sources)
    with (sources / "csrc" / "cuda" / "launch.h").open("a") as file:
        file.write("\n")
    assert evidence.cuda_sources(sources) != before


def test_the_hash_needs_no_git(sources: Path, monkeypatch):
    want = evidence.cuda_sources(sources)
    monkeypatch.setenv("PATH", "")
    assert evidence.cuda_sources(sources) == want


def test_the_library_says_what_it_was_built_from():
    built = next(iter((ROOT / "oltr_ext").glob("_oltr_cuda*")), None)
    if built is None:
        pytest.skip("built without CUDA")
    assert evidence.built_from(built) == evidence.cuda_sources()
    assert evidence.built_from(Path(__file__)) == ""


def record(root: Path, sha256: str) -> None:
    path = root / evidence.RECORD
    path.parent.mkdir(parents=True)
    entry = {
        "sha256": sha256, "date": "2030-01-02T03:04:05", "device": "Some GPU", "passed": 12,
        "failed": 0, "sanitizer": {"memcheck": "ERROR SUMMARY: 0 errors"},
    }  # fmt: skip
    path.write_text(json.dumps(entry))


def test_no_record_is_no_claim(sources: Path):
    assert evidence.verified(sources) == "never run on a GPU"


def test_a_record_of_other_sources_is_no_claim(sources: Path):
    record(sources, "0" * 64)
    assert evidence.verified(sources).startswith("not run on a GPU as they are")


def test_a_record_of_these_sources(sources: Path):
    record(sources, evidence.cuda_sources(sources))
    said = evidence.verified(sources)
    assert said.startswith("12 tests passed, 0 failed, Some GPU on 2030-01-02")
    assert "0 errors" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_check_claims_nothing(tmp_path: Path, capsys):
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert "nothing was run" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_unknown_parts_are_named(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["benches"])
    assert "no part benches; there are tests, sanitizer, bench, train" in capsys.readouterr().err


REPORT = """
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void cutlass::Kernel2<T1>(T1::Params)+0x10
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void oltr::cuda::row_norms_kernel<float>(const T1 *)+0x20
=========     by thread (1,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""


def test_errors_of_other_kernels_are_not_ours():
    (error,) = gpu_check.ours(REPORT)
    assert "row_norms_kernel" in error and "cutlass" not in error


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path_factory):
    """gpu_check as if there was a GPU, for what it does with a part's results."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "gpu", lambda: {"name": "Some GPU"})
    monkeypatch.setattr(gpu_check, "built_from", lambda library: evidence.cuda_sources())
    from oltr_ext.ops import _backend

    package = tmp_path_factory.mktemp("package")
    (package / "_oltr_cuda.so").touch()
    monkeypatch.setattr(_backend, "_PACKAGE", package)
    monkeypatch.setattr(_backend.STATUS, "cuda_error", None)
    return monkeypatch


def test_parts_add_to_the_record(on_a_gpu, tmp_path: Path):
    good = {"clean": True, "summary": "ERROR SUMMARY: 0 errors", "first": ""}
    outcome = {"passed": 3, "failed": 0, "skipped": 0, "failures": [], "tail": ""}
    on_a_gpu.setattr(gpu_check, "tests", lambda save: save(outcome))
    on_a_gpu.setattr(gpu_check, "watched", lambda tool: good)
    out = ["--out", str(tmp_path)]
    assert gpu_check.main(["tests", *out]) == 0
    assert gpu_check.main(["sanitizer:memcheck", *out]) == 0
    assert gpu_check.main(["sanitizer:racecheck", *out]) == 0
    found = json.loads((tmp_path / "gpu_verified.json").read_text())
    assert found["passed"] == 3 and set(found["sanitizer"]) == {"memcheck", "racecheck"}
    assert found["sha256"] == evidence.cuda_sources()
    part = json.loads((tmp_path / "some-gpu" / "sanitizer-memcheck.json").read_text())
    assert part["sanitizer"] == {"memcheck": good}


def test_a_part_that_breaks_off_keeps_what_it_had(on_a_gpu, tmp_path: Path):
    def breaks(save):
        save({"half": 1})
        raise RuntimeError("the GPU is gone")

    on_a_gpu.setattr(gpu_check, "bench", breaks)
    assert gpu_check.main(["bench", "--out", str(tmp_path)]) == 1
    assert "device" not in json.loads((tmp_path / "gpu_verified.json").read_text())
    kept = json.loads((tmp_path / "some-gpu" / "bench.json").read_text())["bench"]
    assert kept == {"half": 1, "error": "RuntimeError: the GPU is gone"}


def test_a_benchmark_of_ours_that_fails_is_no_pass():
    good, failed = {"times": {}}, {"error": "RuntimeError: x"}
    assert gpu_check.passed("bench", {"a": good, "a, compiled": failed, "accuracy": []})
    assert not gpu_check.passed("bench", {"a": failed, "accuracy": []})


def test_a_library_of_other_sources_is_refused(on_a_gpu, tmp_path: Path, capsys):
    on_a_gpu.setattr(gpu_check, "built_from", lambda library: "0" * 64)
    assert gpu_check.main(["tests", "--out", str(tmp_path)]) == 1
    assert "built from other sources" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_hangs_is_stopped_with_its_children():
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while 1: pass'])"
    status, said = gpu_check.run([sys.executable, "-c", child], 1.0)
    assert status is None and said.startswith("took more than 1 s")
    assert gpu_check.run(["no such command"], 1.0)[0] is None


def test_a_test_run_that_crashes_is_no_pass(monkeypatch):
    report = ROOT / "build" / "gpu-check-tests.xml"
    report.parent.mkdir(exist_ok=True)
    report.write_text('<testsuite errors="0" failures="0" skipped="0" tests="9">')  # an earlier one
    monkeypatch.setattr(gpu_check, "run", lambda *a: (-11, "Segmentation fault"))
    with pytest.raises(RuntimeError, match="did not finish, exit status -11: Segmentation"):
        gpu_check.tests(lambda result: None)
