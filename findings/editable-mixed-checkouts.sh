#!/usr/bin/env bash
# setuptools: an unbuilt checkout that comes first on the path takes its compiled module from another, installed checkout
#
# Versions: setuptools 84.2.1 (2026), pip 26.2, Python 3.11.
# Two checkouts of a package with an extension module; one is installed (`pip install --editable`), the other was just
# cloned and not built. With the clone first on PYTHONPATH its Python files are imported from there, and the extension,
# which the clone lacks, from the installed checkout: the finder of an editable install is asked for every module below the
# package's name, wherever the package itself came from. So a benchmark or a bisection of two checkouts runs and compares
# one build with itself. With the older way (`editable_mode=compat`, a folder in a .pth file) the same import fails.
# Seen (where the package's Python and its extension come from):
#> default: the package is of clone, its extension of installed
#> compat: the package is of clone, its extension of nowhere: No module named 'kern._native'
# Here: benchmarks/by_isa.py --trees refuses a checkout without its own extension;
# python_tests/test_benchmarks.py::test_instruction_sets_and_checkouts_side_by_side.
pins="setuptools==84.2.1 pip==26.2"
set -euo pipefail
command -v cc >/dev/null || { echo "needs a C compiler"; exit 77; }
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=$tmp/venv/bin/python
python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins
mkdir -p "$tmp/installed/kern"
: >"$tmp/installed/kern/__init__.py"
cat >"$tmp/installed/kern/native.c" <<'C'
#include <Python.h>
static struct PyModuleDef about = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&about); }
C
cat >"$tmp/installed/setup.py" <<'PYTHON'
from setuptools import Extension, setup

setup(name="kern", version="1", packages=["kern"], ext_modules=[Extension("kern._native", ["kern/native.c"])])
PYTHON
cp -r "$tmp/installed" "$tmp/clone"
cat >"$tmp/ask.py" <<'PYTHON'
import pathlib

import kern


def place(module):
    return pathlib.Path(module.__file__).parent.parent.name


try:
    import kern._native

    found = place(kern._native)
except ImportError as error:
    found = f"nowhere: {error}"
print(f"the package is of {place(kern)}, its extension of {found}")
PYTHON
for mode in default compat; do
  [ "$mode" = compat ] && how="--config-settings editable_mode=compat" || how=
  "$py" -m pip install -q --no-build-isolation $how --editable "$tmp/installed" >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
  echo "$mode: $(cd "$tmp" && PYTHONPATH=$tmp/clone "$py" ask.py)" >>"$tmp/out"
done
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
