#!/usr/bin/env bash
# set_float32_matmul_precision("medium") rounds a row's products or not, by how many other rows there are
#
# Versions: torch 2.14.1 on an Intel processor with AMX (exit 77 elsewhere).
# "medium" lets float32 products be computed in bfloat16, which is documented. Not so that on AMX `mm` does it only from
# some number of outputs (rows times columns) up: with 100 classes two rows are exact and three are rounded, with 10
# classes sixteen are exact, so that an image alone and the same image in a batch get different logits. Widths of 16 are
# exact. The same product as `bmm`, `einsum` or convolution is rounded where `mm` is not; so one can neither avoid bfloat16
# by small calls nor count on it. With oneDNN held to AVX512_CORE_BF16, which multiplies bfloat16 too, nothing is rounded.
# Seen (rows x classes x width):
#> mm 2 x 100 x 512: exact
#> mm 3 x 100 x 512: rounded
#> mm 16 x 10 x 512: exact
#> mm 32 x 10 x 512: rounded
#> mm 1 x 1000 x 512: rounded
#> mm 32 x 1000 x 16: exact
#> bmm 1 x 100 x 512: rounded
#> einsum 1 x 100 x 512: rounded
#> conv2d 1 x 100 x 512: rounded
#> two rows of 64 x 100 x 512, alone and in the batch: differ
#> mm 64 x 1000 x 512 without AMX: exact
# Here: python_tests/test_precision.py (every op under "medium", winners measured exactly) and
# python_tests/test_neighbours.py::test_medium_precision_answers_a_row_alike_alone_and_in_a_batch.
pins="torch==2.14.1 numpy==2.4.6"
grep -qw amx_bf16 /proc/cpuinfo 2>/dev/null || { echo "skipped: no such processor (amx_bf16)"; exit 77; }
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/products.py" <<'PYTHON'
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_float32_matmul_precision("medium")
ways = {
    "mm": lambda x, w: x @ w.T,
    "bmm": lambda x, w: torch.bmm(x[None], w.T[None])[0],
    "einsum": lambda x, w: torch.einsum("bd,cd->bc", x, w),
    "conv2d": lambda x, w: F.conv2d(x[..., None, None], w[..., None, None])[..., 0, 0],
}


def show(way, rows, classes, width, note=""):
    x, w = torch.randn(rows, width), torch.randn(classes, width)
    true = x.double() @ w.double().T
    error = (ways[way](x, w) - true).abs().max() / true.abs().max()
    print(f"{way} {rows} x {classes} x {width}{note}: {'rounded' if error > 1e-4 else 'exact'}")


if sys.argv[1:] == ["without"]:
    show("mm", 64, 1000, 512, " without AMX")
else:
    for case in ((2, 100, 512), (3, 100, 512), (16, 10, 512), (32, 10, 512), (1, 1000, 512), (32, 1000, 16)):
        show("mm", *case)
    for way in ("bmm", "einsum", "conv2d"):
        show(way, 1, 100, 512)
    x, w = torch.randn(64, 512), torch.randn(100, 512)
    far = ((x[:2] @ w.T) - (x @ w.T)[:2]).abs().max() > 1e-2
    print(f"two rows of 64 x 100 x 512, alone and in the batch: {'differ' if far else 'agree'}")
PYTHON
"$py" -W ignore "$tmp/products.py" >"$tmp/out"
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 "$py" -W ignore "$tmp/products.py" without >>"$tmp/out"
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
