"""Tests run the native kernels: a fallback can never pass as a result."""

import os

os.environ.setdefault("OLTR_EXT_BACKEND", "native")

import pytest
import torch

# What takes longest comes first where files are dealt to processes, so that all end together.
LONGEST = (
    "test_export_aoti",
    "test_export_onnx",
    "test_sharded_heads",
    "test_class_shards",
    "test_cli",
    "test_readme",
    "test_benchmarks",
    "test_train",
    "test_export",
    "test_distributed",
    "test_methods",
    "test_packaging",
    "test_desk_page",
    "test_settle",
    "test_backbones_whole",
    "test_service_process",
    "test_recipes",
)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # a process of pytest-xdist, under --no-loadscope-reorder
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.stem, len(order)))


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


# Imported where they are used: the ops' tests also run where only torch and pytest are.
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tiny data set of list files."""
    from tiny import write_data

    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run of the tiny configuration on it."""
    from tiny import config

    from oltr_ext.config.loading import make_config
    from oltr_ext.engine.train import train

    out = tmp_path_factory.mktemp("finished")
    train(make_config(config(data)), out)
    return out
