"""Tests run the native kernels: a fallback can never pass as a result."""

import os

os.environ.setdefault("OLTR_EXT_BACKEND", "native")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a fresh interpreter that sees the test helpers; returns its stdout."""
    import subprocess
    import sys
    from pathlib import Path

    def run(code: str, **environment: str) -> str:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **environment},
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    """Each device in turn, as the one where new tensors are made."""
    with torch.device(request.param):
        yield request.param
