"""The architecture's arrows: packages import downwards only, kernels are free of torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "oltr_ext"
CSRC = ROOT / "csrc"

# cli -> desk, service -> serve -> engine -> config -> data, models, metrics, report -> nn -> ops ->
# reference; equals never meet.
LEVEL = {
    "__init__": 10,
    "__main__": 10,
    "api": 9,
    "cli": 9,
    "desk": 8,
    "service": 8,
    "serve": 7,
    "engine": 6,
    "info": 5,
    "config": 5,
    "estimator": 5,
    "data": 4,
    "models": 4,
    "metrics": 4,
    "report": 4,
    "nn": 3,
    "ops": 2,
    "reference": 1,
    "_C": 0,
    "_defaults": 0,
    "_files": 0,
    "_moved": 0,
    "_pixels": 0,
    "_tables": 0,
    "_version": 0,
    "_words": 0,
}


def imported_parts(source: str, module: str) -> set[str]:
    """First components below oltr_ext that `module` (dotted, below oltr_ext) imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = ["oltr_ext", *module.split(".")][: -node.level]
                base = ".".join([*inside, base] if base else inside)
            names = [f"{base}.{a.name}" for a in node.names] if base == "oltr_ext" else [base]
        for name in names:
            parts = name.split(".")
            if parts[0] == "oltr_ext" and len(parts) > 1:
                found.add(parts[1] if parts[1] in LEVEL else "__init__")
    return found


def violations(source: str, module: str) -> list[str]:
    own = module.split(".")[0]
    return [
        f"{module} imports oltr_ext.{part}"
        for part in sorted(imported_parts(source, module))
        if part != own and LEVEL[part] >= LEVEL[own]
    ]


def python_modules() -> dict[str, str]:
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        # a package's own name is kept as a last part, so that `.` means the package itself
        modules[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] = path.read_text()
    return modules


def test_imports_point_one_way() -> None:
    modules = python_modules()
    assert {"config", "data", "engine", "metrics", "models", "ops", "reference", "serve"} <= {
        m.split(".")[0] for m in modules
    }
    assert [v for m, source in modules.items() for v in violations(source, m)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops.memory", "from oltr_ext.nn import MetaEmbedding"),
        ("ops.memory", "from ..nn import MetaEmbedding"),
        ("engine.train", "from oltr_ext.serve.trained import load_trained"),
        ("config.schema", "from oltr_ext.engine.splits import load_splits"),
        ("data.icons", "from oltr_ext import metrics"),
        ("data.icons", "import oltr_ext.models.backbones"),
        ("metrics.shots", "def f():\n    from ..report import write_report"),
        ("reference.ops", "from oltr_ext.ops import class_means"),
        ("nn.heads", "from oltr_ext import CosineClassifier"),
    ],
)
def test_the_rule_finds_an_upward_import(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


def test_the_rule_allows_a_downward_import() -> None:
    assert violations("from ..nn import OLTRHead\nfrom . import model", "models.model") == []


def includes(folder: str) -> list[tuple[str, str]]:
    pattern = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
    paths = [p for p in (CSRC / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    found = [(p.name, i) for p in sorted(paths) for i in pattern.findall(p.read_text())]
    assert found, folder
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("common", ("torch/", "ATen/", "c10/", "pybind11/", "cuda", "cpu/", "testing/")),
        ("cpu", ("torch/", "ATen/", "c10/", "pybind11/", "cuda", "testing/")),
        ("cuda", ("torch/", "ATen/", "c10/", "pybind11/", "cpu/", "testing/")),
        ("torch", ("pybind11/", "testing/", "ATen/", "c10/")),
        ("testing", ("torch/", "ATen/", "c10/", "pybind11/")),
    ],
)
def test_native_includes_point_one_way(folder: str, forbidden: tuple[str, ...]) -> None:
    wrong = [f"{name} includes {i}" for name, i in includes(folder) if i.startswith(forbidden)]
    assert wrong == []


def test_python_bindings_need_no_torch() -> None:
    assert "torch/" not in (CSRC / "bindings.cpp").read_text()


def test_cpu_glue_needs_no_cuda() -> None:
    names = [(n, i) for n, i in includes("torch") if "cuda" not in n]
    assert [f"{n} includes {i}" for n, i in names if "cuda" in i] == []
