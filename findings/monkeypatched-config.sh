#!/usr/bin/env bash
# pytest and torch: a key of torch's configuration that monkeypatch has set and restored no longer exists
#
# Versions: pytest 9.2.0 (2026), torch 2.14.1; with pytest 8.3.5 the key is restored.
# pytest 9.2's monkeypatch restores an attribute that the object did not hold in its own `__dict__` by deleting it, so that
# the inherited one shows again. torch's configuration modules keep their values elsewhere and answer by `__getattr__`, and
# a deleted key is hidden for good (they expect it to be set again, as mock.patch does). So the test that patches passes,
# and what compiles later in the same process fails with an AttributeError about a key that it never touched, or does not,
# by the order of tests and by what is in the compiler's cache. mock.patch.object and torch's own `config.patch` restore.
# Seen (the key after each was set and restored):
#> pytest 9.2.0 monkeypatch: inductor.cpp.cxx gone, dynamo.recompile_limit gone
#> pytest 8.3.5 monkeypatch: inductor.cpp.cxx restored, dynamo.recompile_limit restored
#> mock.patch.object: inductor.cpp.cxx restored, dynamo.recompile_limit restored
#> config.patch: inductor.cpp.cxx restored, dynamo.recompile_limit restored
# Here: python_tests/test_export_aoti.py::test_without_a_compiler, which sets it by torch's own patch; before, compiled peers of
# python_tests/test_benchmarks.py failed now and then.
pins="torch==2.14.1"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/ask.py" <<'PYTHON'
import sys
from unittest import mock

import pytest
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

keys = {"inductor.cpp.cxx": (inductor.cpp, "cxx"), "dynamo.recompile_limit": (dynamo, "recompile_limit")}


def state(was):
    now = {name: getattr(*key, "gone") for name, key in keys.items()}
    return ", ".join(f"{n} {'restored' if v == was[n] else v}" for n, v in now.items())


def monkeypatched():
    patch = pytest.MonkeyPatch()
    for module, name in keys.values():
        patch.setattr(module, name, getattr(module, name))
    patch.undo()


def mocked():
    for module, name in keys.values():
        with mock.patch.object(module, name, getattr(module, name)):
            pass


def own():
    with inductor.patch({"cpp.cxx": inductor.cpp.cxx}), dynamo.patch(recompile_limit=3):
        pass


was = {name: getattr(*key) for name, key in keys.items()}
ways = {"mock.patch.object": mocked, "config.patch": own}
for name, way in ways.items() if "others" in sys.argv else [(f"pytest {pytest.__version__} monkeypatch", monkeypatched)]:
    way()
    print(f"{name}: {state(was)}")
PYTHON
for version in 9.2.0 8.3.5; do
  "$py" -m pip install -q --target "$tmp/$version" "pytest==$version"
  PYTHONPATH=$tmp/$version "$py" "$tmp/ask.py" >>"$tmp/out"
done
PYTHONPATH=$tmp/9.2.0 "$py" "$tmp/ask.py" others >>"$tmp/out"
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
