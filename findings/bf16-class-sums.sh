#!/usr/bin/env bash
# The sum of 4,096 bfloat16 ones, all of one class, is 4096 or 256, depending on how it is spelled
#
# Versions: torch 2.14.1, on the CPU (any instruction set); the compiled column needs a C++ compiler.
# Some operators round the running sum to bfloat16 after every row, so it stops where adding 1 no longer changes it.
# Which ones do follows no rule one could guess: index_add does for a vector and not for a column of a matrix; the
# gradient of embedding does and that of gather does not; means divide the stopped sum by the true count (1/16 instead
# of 1). torch.compile turns scatter_add and the gradient of gather from right to wrong, index_reduce and the gradient of
# embedding from wrong to right. float16 does the same at 2048.
# Seen (operator: eager, compiled):
#> index_add, (N, 1): 4096 4096
#> index_add, (N,): 256 256
#> scatter_add, (N, 1): 4096 256
#> index_put accumulate: 256 256
#> segment_reduce mean: 0.0625 0.0625
#> index_reduce mean: 0.0625 1
#> scatter_reduce mean: 1 1
#> gradient of embedding: 256 4096
#> gradient of gather: 4096 256
# Here: class sums run in float32 or float64;
# python_tests/test_neighbours.py::test_class_sums_go_on_where_adding_one_changes_nothing.
pins="torch==2.14.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
n = 4096
ones = torch.ones(n, 1, dtype=torch.bfloat16)
label = torch.zeros(n, dtype=torch.long)
zero = torch.zeros(1, 1, dtype=torch.bfloat16)
lengths = torch.tensor([n])


sums = {
    "index_add, (N, 1)": lambda z, i, x: z.index_add(0, i, x),
    "index_add, (N,)": lambda z, i, x: z[:, 0].index_add(0, i, x[:, 0]),
    "scatter_add, (N, 1)": lambda z, i, x: z.scatter_add(0, i[:, None], x),
    "index_put accumulate": lambda z, i, x: z.index_put((i,), x, accumulate=True),
    "segment_reduce mean": lambda z, i, x: torch.segment_reduce(x, "mean", lengths=lengths, axis=0),
    "index_reduce mean": lambda z, i, x: z.index_reduce(0, i, x, "mean", include_self=False),
    "scatter_reduce mean": lambda z, i, x: z.scatter_reduce(0, i[:, None], x, "mean", include_self=False),
}
lookups = {
    "embedding": lambda weight, i: F.embedding(i, weight),
    "gather": lambda weight, i: weight.gather(0, i[:, None]),
}


def gradient(lookup):
    weight = zero.clone().requires_grad_()
    lookup(weight, label).sum().backward()
    return weight.grad


for name, of in sums.items():
    print(f"{name}: {of(zero, label, ones).item():g} {torch.compile(of)(zero, label, ones).item():g}")
    torch._dynamo.reset()
for name, of in lookups.items():
    print(f"gradient of {name}: {gradient(of).item():g} {gradient(torch.compile(of)).item():g}")
    torch._dynamo.reset()
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
