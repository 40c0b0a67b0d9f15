"""Options and the backend of the benchmarks: `pytest benchmarks/bench_x.py --benchmark-json=F`."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OLTR_EXT_BACKEND", "native")

import pytest
from harness import Settings
from machine import machine

from oltr_ext import backend


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oltr_ext benchmarks")
    group.addoption("--quick", action="store_true", help="the cases that matter most")
    group.addoption("--smoke", action="store_true", help="tiny shapes: does it run at all")
    group.addoption("--compile", action="store_true", help="torch.compile of the best eager peer")
    group.addoption("--memory", action="store_true", help="also peak memory, a process a call")
    group.addoption("--budget", type=float, default=None, help="seconds of timing a case")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: part of --quick")
    if backend() != "native":
        raise pytest.UsageError(f"benchmarks need OLTR_EXT_BACKEND=native, got {backend()!r}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        rest = [item for item in items if not item.get_closest_marker("quick")]
        config.hook.pytest_deselected(items=rest)
        items[:] = [item for item in items if item.get_closest_marker("quick")]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the rest names the host
    machine_info.update(machine())


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    option = request.config.getoption
    budget = option("--budget")
    if budget is None:
        budget = 0.3 if option("--smoke") else 8.0 if option("--quick") else 15.0
    return Settings(budget, option("--smoke"), option("--compile"), option("--memory"))
