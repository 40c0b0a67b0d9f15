"""Turns a few minutes on a GPU into evidence: `python benchmarks/gpu_check.py PART...`.

Parts, each under ten minutes; all of them if none is named:

    tests       the ops' tests on the GPU
    sanitizer   compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over every op
    bench       the ops against their peers, peak memory, accuracy (gpu_bench.py)
    train       the embedded icons, trained on CPU and GPU

Needs torch with CUDA, pytest for `tests`, and the library, built here or carried along; no network.
Writes results/<gpu>/<part>.json under --out, and gpu_verified.json: which CUDA sources (their hash)
passed what, where and when. Commit both.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evidence import RECORD, cuda_sources

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "sanitizer", "bench", "train")
TESTS = (
    "test_cuda.py", "test_ops.py", "test_nearest_centroid.py", "test_meta_embedding.py",
    "test_cosine_cross_entropy.py", "test_disc_centroids_loss.py",
)  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OLTR_EXT_BACKEND": "native", "PYTHONPATH": path}


def gpu() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    found = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit",
         "--format=csv,noheader"],
        capture_output=True, text=True,
    )  # fmt: skip
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver_and_clocks": found.stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def tests() -> dict[str, Any]:
    """Every test that names the GPU, and those of the CPU beside it."""
    report = ROOT / "build" / "gpu-check-tests.xml"
    report.parent.mkdir(exist_ok=True)
    files = [str(ROOT / "python_tests" / name) for name in TESTS]
    limit = ["--timeout=120"] if importlib.util.find_spec("pytest_timeout") else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda",
         f"--junitxml={report}", *limit, *files],
        env=environment(), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    text = report.read_text() if report.exists() else ""
    head = re.search(r'errors="(\d+)" failures="(\d+)" skipped="(\d+)" tests="(\d+)"', text)
    errors, failures, skipped, total = map(int, head.groups()) if head else (1, 0, 0, 0)
    names = re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE)
    return {
        "passed": total - errors - failures - skipped,
        "failed": errors + failures,
        "skipped": skipped,
        "failures": names[:50],
        "tail": done.stdout[-6000:] if errors + failures else "",
    }


def drive() -> None:
    """Every op once, forward and backward, small; what the sanitizer watches."""
    import torch

    sys.path.insert(0, str(ROOT / "python_tests"))
    from op_cases import CASES, cast, run

    for case in CASES:
        for shape, dtype in [((5, 300, 33), torch.float32), ((70, 140, 64), torch.bfloat16)]:
            run(case, cast(case.make(*shape), dtype, case, device="cuda"))
    torch.cuda.synchronize()


def sanitizer() -> dict[str, Any]:
    """Each tool over `drive`, looking at our kernels alone."""
    tool_path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    results: dict[str, Any] = {}
    for tool in TOOLS:
        run = [sys.executable, str(Path(__file__)), "drive"]
        # No cache of memory: each tensor then has bounds of its own.
        env = {**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = [tool_path, "--tool", tool, "--kernel-name", "kernel_substring=oltr"]
        try:
            done = subprocess.run(
                [*command, "--error-exitcode", "9", *run],
                env=env, cwd=ROOT, capture_output=True, text=True, timeout=150,
            )  # fmt: skip
            text = done.stdout + done.stderr
            summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
            clean = done.returncode == 0 and bool(summary)
            results[tool] = {
                "clean": clean,
                "summary": summary[-1] if summary else text[-500:],
                "first": "" if clean else text[:3000],
            }
        except (OSError, subprocess.TimeoutExpired) as error:
            results[tool] = {"clean": False, "summary": f"did not run: {error}"}
    return results


def bench() -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_bench

    return gpu_bench.run()


def train() -> dict[str, Any]:
    """The recipe of the demo on both devices; accuracies and AUROC must agree within noise."""
    from oltr_ext.engine.assess import assess
    from oltr_ext.engine.config import load_config
    from oltr_ext.engine.predict import load_trained
    from oltr_ext.engine.train import train as train_run

    results: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        started = time.perf_counter()
        out = ROOT / "build" / f"gpu-check-train-{device}"
        shutil.rmtree(out, ignore_errors=True)
        path = train_run(load_config("icons", [f"device={device}", "seed=0"]), out, say=print)
        result = assess(load_trained(path, device=device), name=device)
        results[device] = {
            "seconds": time.perf_counter() - started,
            "accuracy": float(result.summary["closed"]["overall"]),
            "auroc": {k: float(s["auroc"]) for k, s in result.summary["scores"].items()},
        }
    apart = abs(results["cpu"]["accuracy"] - results["cuda"]["accuracy"])
    # Sums in another order lead training elsewhere; seeds differ by about two points.
    return {**results, "accuracy_apart": apart, "agree": apart < 0.05}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    if arguments.parts == ["drive"]:
        drive()
        return 0
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    os.environ["OLTR_EXT_BACKEND"] = "native"
    sys.path.insert(0, str(ROOT))
    import torch

    if not torch.cuda.is_available():
        print("gpu_check: no GPU that torch can use; nothing was run on one")
        return 1
    import oltr_ext.ops._backend as backend

    if backend.STATUS.cuda_error is not None:
        print(f"gpu_check: the CUDA library is not loaded: {backend.STATUS.cuda_error}")
        return 1
    where, sources = gpu(), cuda_sources()
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    folder = arguments.out / re.sub(r"[^a-z0-9]+", "-", where["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    verified_path = arguments.out / RECORD.name
    verified = json.loads(verified_path.read_text()) if verified_path.exists() else {}
    if verified.get("sha256") != sources:
        verified = {"sha256": sources, "passed": 0, "failed": 0, "sanitizer": {}}
    verified |= {"date": date, "device": where["name"]}
    worst = 0
    for part in arguments.parts or PARTS:
        print(f"gpu_check: {part}", flush=True)
        try:
            result = globals()[part]()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        record = {"gpu": where, "sha256": sources, "date": date, part: result}
        (folder / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n")
        bad = "error" in result
        if part == "tests" and not bad:
            verified |= {k: result[k] for k in ("passed", "failed")}
            bad = result["failed"] > 0 or result["passed"] == 0
        if part == "sanitizer" and not bad:
            verified["sanitizer"] = {t: r["summary"] for t, r in result.items()}
            bad = not all(r["clean"] for r in result.values())
        bad |= part == "train" and not result.get("agree", False)
        print(json.dumps(result, indent=1)[-6000:], flush=True)
        worst |= bad
        verified_path.write_text(json.dumps(verified, indent=1) + "\n")
    return int(worst)


if __name__ == "__main__":
    raise SystemExit(main())
