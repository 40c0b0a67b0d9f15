"""Turns a few minutes on a GPU into evidence: `python benchmarks/gpu_check.py PART...`.

Parts, each under ten minutes; all of them if none is named:

    tests       the ops' tests on the GPU
    sanitizer   compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over every op
    bench       the ops against their peers, peak memory, accuracy (gpu_bench.py)
    train       the embedded icons, trained on CPU and GPU

Needs torch with CUDA, pytest for `tests`, pydantic for `train`, and the library, built here
(`python setup.py build_ext --inplace`) or carried along; no network. One tool of the sanitizer is
`sanitizer:memcheck`. Writes results/<gpu>/<part>.json under --out as it goes, and
gpu_verified.json: which CUDA sources (their hash, which the library must have been built from)
passed what, where and when. Commit both; a later part adds to the record of the same sources.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evidence import RECORD, built_from, cuda_sources

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "sanitizer", "bench", "train")
TESTS = (
    "test_cuda.py", "test_ops.py", "test_precision.py", "test_nearest_centroid.py",
    "test_meta_embedding.py", "test_cosine_cross_entropy.py", "test_disc_centroids_loss.py",
)  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TEST_SECONDS, TOOL_SECONDS = 540, 120
Save = Callable[[dict[str, Any]], None]


class Report:
    """A part's results so far, in a file from the first of them on."""

    def __init__(self, file: Path, part: str, about: dict[str, Any]) -> None:
        self.file, self.part, self.about = file, part, about
        self.result: dict[str, Any] = {}

    def __call__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.file.write_text(json.dumps({**self.about, self.part: result}, indent=1) + "\n")


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OLTR_EXT_BACKEND": "native", "PYTHONPATH": path}


def run(command: list[str], seconds: float, **variables: str) -> tuple[int | None, str]:
    """Exit status, and what was printed; no status where it did not start or took too long."""
    try:
        process = subprocess.Popen(
            command, env={**environment(), **variables}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return None, f"did not start: {error}"
    try:
        said = process.communicate(timeout=seconds)[0]
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its children too: they would keep the GPU
        return None, f"took more than {seconds:.0f} s\n{process.communicate()[0]}"


def gpu() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    _, said = run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], 20)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver_and_clocks": said.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def tests(save: Save) -> None:
    """Every test that names the GPU."""
    report = ROOT / "build" / "gpu-check-tests.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)  # of an earlier run
    files = [str(ROOT / "python_tests" / name) for name in TESTS]
    limit = ["--timeout=120"] if importlib.util.find_spec("pytest_timeout") else []
    # The plan's tests are of plain numbers, and many.
    chosen = ["-k", "cuda and not test_plan", f"--junitxml={report}", *limit, *files]
    status, said = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], TEST_SECONDS
    )
    text = report.read_text() if report.exists() else ""
    head = re.search(r'errors="(\d+)" failures="(\d+)" skipped="(\d+)" tests="(\d+)"', text)
    if status not in (0, 1) or head is None:
        raise RuntimeError(f"pytest did not finish, exit status {status}: {said[-3000:]}")
    errors, failures, skipped, total = map(int, head.groups())
    names = re.findall(r"^(?:FAILED|ERROR) .*$", said, re.MULTILINE)
    save(
        {
            "passed": total - errors - failures - skipped,
            "failed": errors + failures,
            "skipped": skipped,
            "failures": names[:50],
            "tail": said[-6000:] if errors + failures else "",
        }
    )


def drive() -> None:
    """Every op once, forward and backward, small; what the sanitizer watches."""
    import torch

    sys.path.insert(0, str(ROOT / "python_tests"))
    from op_cases import CASES, cast, run

    for case in CASES:
        for shape, dtype in [((5, 300, 33), torch.float32), ((70, 140, 64), torch.bfloat16)]:
            run(case, cast(case.make(*shape), dtype, case, device="cuda"))
    torch.cuda.synchronize()


def ours(report: str) -> list[str]:
    """The errors of a sanitizer's report that name one of our kernels."""
    errors = re.split(r"^=========\s*$", report, flags=re.MULTILINE)
    return [e.strip() for e in errors if re.search(r"at .*oltr", e)]


def watched(tool: str) -> dict[str, Any]:
    """One of compute-sanitizer's tools over `drive`, for our kernels."""
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "10000"]
    if tool != "initcheck":  # which must watch torch and cuBLAS too, to see what they have written
        command += ["--kernel-name", "kernel_substring=oltr"]
    if tool == "memcheck":
        command += ["--report-api-errors", "no"]  # libraries probe; our launches check for errors
    # No cache of memory: each tensor then has bounds of its own.
    status, said = run(
        [*command, sys.executable, str(Path(__file__)), "drive"],
        TOOL_SECONDS,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", said)
    errors = ours(said)
    clean = bool(summary) and not errors and status in ((0, 9) if tool == "initcheck" else (0,))
    told = summary[-1] if summary else said[-500:]
    return {
        "clean": clean,
        "summary": f"{len(errors)} errors in our kernels"
        if tool == "initcheck" and summary
        else told,
        "first": "" if clean else "\n".join(errors)[:3000] or said[:3000],
    }


def sanitizer(save: Save, tools: tuple[str, ...] = TOOLS) -> None:
    results: dict[str, Any] = {}
    for tool in tools:
        results[tool] = watched(tool)
        save(results)


def bench(save: Save) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_bench

    gpu_bench.run(save)


def train(save: Save) -> None:
    """The recipe of the demo on both devices; accuracies and AUROC must agree within noise."""
    from oltr_ext.config.loading import load_config
    from oltr_ext.engine.train import train as train_run
    from oltr_ext.serve.assess import assess
    from oltr_ext.serve.trained import load_trained

    results: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        started = time.perf_counter()
        out = ROOT / "build" / f"gpu-check-train-{device}"
        shutil.rmtree(out, ignore_errors=True)
        path = train_run(
            load_config("icons", [f"device={device}", "seed=0"], method="oltr"), out, say=print
        )
        result = assess(load_trained(path, device=device), name=device)
        results[device] = {
            "seconds": time.perf_counter() - started,
            "accuracy": float(result.summary["closed"]["overall"]),
            "auroc": {k: float(s["auroc"]) for k, s in result.summary["scores"].items()},
        }
    apart = abs(results["cpu"]["accuracy"] - results["cuda"]["accuracy"])
    # Sums in another order lead training elsewhere; seeds differ by about two points.
    save({**results, "accuracy_apart": apart, "agree": apart < 0.05})


def passed(part: str, result: dict[str, Any]) -> bool:
    """Whether a part's record speaks for the kernels."""
    if "error" in result or not result:
        return False
    if part == "tests":
        return bool(result["failed"] == 0 and result["passed"] > 0)
    if part == "sanitizer":
        return all(tool["clean"] for tool in result.values())
    if part == "bench":  # a peer that cannot be compiled is a finding, a call of ours is a failure
        ours = [row for name, row in result.items() if not name.endswith("compiled")]
        return not any(isinstance(row, dict) and "error" in row for row in ours)
    return bool(result.get("agree", True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    if arguments.parts == ["drive"]:
        drive()
        return 0
    known = {*PARTS, *(f"sanitizer:{tool}" for tool in TOOLS)}
    unknown = set(arguments.parts) - known
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
    library = next(backend._PACKAGE.glob("_oltr_cuda*"))
    where, sources = gpu(), cuda_sources()
    if built_from(library) != sources:
        print(f"gpu_check: {library.name} was built from other sources than these; build it anew")
        return 1
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    folder = arguments.out / re.sub(r"[^a-z0-9]+", "-", where["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    record = arguments.out / RECORD.name
    before = next((p for p in (record, ROOT / RECORD) if p.exists()), None)
    verified = json.loads(before.read_text()) if before else {}
    if verified.get("sha256") != sources:
        verified = {"sha256": sources, "passed": 0, "failed": 0, "sanitizer": {}}
    good = True
    for asked in arguments.parts or PARTS:
        part, _, tool = asked.partition(":")
        print(f"gpu_check: {asked}", flush=True)
        file = folder / f"{asked.replace(':', '-')}.json"
        save = Report(file, part, {"gpu": where, "sha256": sources, "date": date})
        try:
            globals()[part](save, *([(tool,)] if tool else []))
        except Exception as error:
            save({**save.result, "error": f"{type(error).__name__}: {error}"})
        result = save.result
        if part in ("tests", "sanitizer"):  # what is verified, and by whom: nothing from before
            verified |= {"date": date, "device": where["name"]}
        if part == "tests":
            verified |= {k: result.get(k, 0) for k in ("passed", "failed")}
        if part == "sanitizer" and "error" not in result:
            said = {t: r["summary"] for t, r in result.items()}
            verified["sanitizer"] = {**verified["sanitizer"], **said}
        record.write_text(json.dumps(verified, indent=1) + "\n")
        print(json.dumps(result, indent=1)[-6000:], flush=True)
        good &= passed(part, result)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
