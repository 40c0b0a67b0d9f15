"""Which CUDA sources were run on which GPU: their hash, and the record of what passed.

gpu_check.py writes the record, setup.py builds its summary into the library's build info, and
`oltr info` shows it. The standard library alone, since builds use this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path("benchmarks") / "results" / "gpu_verified.json"


def cuda_sources(root: Path = ROOT) -> str:
    """SHA-256 of csrc/cuda and csrc/common: paths in bytewise order, contents one after another.

    Of the files that are there, for those are built; in a clean checkout, what git lists.
    """
    folders = (root / "csrc" / "cuda", root / "csrc" / "common")
    names = [
        p.relative_to(root).as_posix()
        for d in folders
        for p in d.rglob("*")
        if p.suffix in (".cpp", ".cu", ".h")
    ]
    digest = hashlib.sha256()
    for name in sorted(names, key=os.fsencode):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def built_from(library: Path) -> str:
    """The hash of the CUDA sources that a library says it was built from; or nothing."""
    found = re.search(rb"oltr_cuda_sources=([0-9a-f]{64})", library.read_bytes())
    return found[1].decode() if found else ""


def verified(root: Path = ROOT) -> str:
    """What is known of these very sources on a GPU, in one line."""
    path = root / RECORD
    if not path.is_file():
        return "never run on a GPU"
    record = json.loads(path.read_text())
    where = f"{record.get('device', 'a GPU')} on {record.get('date', '?')[:10]}"
    if record.get("sha256") != cuda_sources(root):
        return f"not run on a GPU as they are; an earlier state was, {where}"
    failed = record.get("failed", 0)
    return (
        f"{record.get('passed', 0)} tests passed, {failed} failed, {where}; "
        f"sanitizers: {'; '.join(record.get('sanitizer', {}).values()) or 'not run'}"
    )
