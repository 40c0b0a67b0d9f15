"""`oltr info` in every state of the installation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import oltr_ext
from oltr_ext import info as module
from oltr_ext._version import __version__
from oltr_ext.ops import _backend


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        ("8.0;9.0;12.0+PTX", (8, 0), "sm_80"),
        ("8.0;9.0;12.0+PTX", (8, 9), "sm_80"),  # same major, older minor: runs as it is
        ("8.0;9.0;12.0+PTX", (9, 0), "sm_90"),
        ("8.0;8.6", (8, 9), "sm_86"),
        ("8.0;9.0;12.0+PTX", (12, 1), "sm_120"),
        ("8.0;9.0;12.0+PTX", (13, 0), "compute_120 (compiled on first use)"),
        ("8.0;9.0;12.0+PTX", (10, 0), ""),  # PTX of 12.0 is too new for it
        ("8.6", (8, 0), ""),
        ("7.0+PTX;8.0+PTX", (9, 0), "compute_80 (compiled on first use)"),
        ("", (9, 0), ""),
    ],
)
def test_coverage(archs: str, capability: tuple[int, int], expected: str) -> None:
    assert _backend.coverage(archs, capability) == expected


def test_info_of_this_installation() -> None:
    state = module.info()
    assert state["versions"]["oltr_ext"] == __version__ == oltr_ext.__version__
    assert state["build"]["version"] == __version__
    assert state["libraries"]["_C"] == state["libraries"]["_oltr_cpu"] == "loaded"
    assert state["cpu"]["isa"] in _backend.INSTRUCTION_SETS
    assert set(state["ops"]) == set(_backend.OPS)
    with _backend.use_backend("auto"):
        assert {how["cpu"] for how in module.info()["ops"].values()} == {"native"}
    with _backend.use_backend("reference"):
        assert {how["cpu"] for how in module.info()["ops"].values()} == {"reference"}
    json.dumps(state)


def test_text_holds_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([]) == 0
    shown = capsys.readouterr().out
    state = module.info()
    for part in ("versions", "libraries"):
        for key, value in state[part].items():
            assert key in shown and value in shown
    assert all(op in shown for op in _backend.OPS)
    assert state["build"]["cuda_library"] in shown


def test_json_is_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == module.info()


def test_a_gpu_that_nothing_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = module.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "get_device_capability", lambda i: (7, 5))
    monkeypatch.setattr(cuda, "get_device_name", lambda i: "Tesla T4")
    state = module.info()
    assert state["gpus"] == [
        {"name": "Tesla T4", "capability": "7.5", "runs": "nothing that was built"}
    ]
    assert "0: Tesla T4 (7.5)  runs nothing that was built" in module.text(state)


def test_works_where_nothing_is_built(tmp_path: Path) -> None:
    package = Path(oltr_ext.__file__).parent
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(package, tmp_path / "oltr_ext", ignore=unbuilt)
    # An editable install would lend this copy its _C.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__]\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "oltr_ext.info"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "_oltr_cpu was not built" in run.stdout
    assert "pip install --no-build-isolation ." in run.stdout
    assert "cpu reference" in run.stdout
