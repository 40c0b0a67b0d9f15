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
