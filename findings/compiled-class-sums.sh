#!/usr/bin/env bash
# torch.compile on a CPU: class sums by index_add, and gradients of an embedding, have other bits at every call; eager ones never
#
# Versions: torch 2.14.1, on a CPU of two cores or more.
# The list of what torch.use_deterministic_algorithms changes names index_add, index_select and embeddings on CUDA alone, and eager
# kernels of a CPU keep to that: one order of sums. Inductor makes loops of its own of them, whose threads add by atomics, in
# whatever order they come. So compiling a training step for a CPU ends its reproducibility, seeds and threads all alike, wherever
# rows are summed by label; `scatter_add` keeps its bits, and all do under use_deterministic_algorithms(True). (Gradients of
# `table[labels]` vary in eager mode too, and that is documented.)
# Seen (of 20 calls on the same numbers, whether all have the same bits; eager, compiled, compiled and told to be deterministic):
#> index_add: True, False, True
#> scatter_add: True, True, True
#> gradient of embedding: True, False, True
#> gradient of index_select: True, False, True
# Here: class means are an op of ours, which compiled code calls as it is (`test_backend.py`); the reference's gradients go by
# `index_select`, which eager mode sums in one order (`test_ops.py`).
pins="torch==2.14.1"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/sums.py" <<'PYTHON'
import torch

torch.manual_seed(0)
rows, labels = torch.randn(200_000, 16), torch.randint(10, (200_000,))
table = torch.randn(10, 16, requires_grad=True)


def index_add():
    return torch.zeros(10, 16).index_add(0, labels, rows)


def scatter_add():
    return torch.zeros(10, 16).scatter_add(0, labels[:, None].expand_as(rows), rows)


def embedded():
    return (torch.nn.functional.embedding(labels, table) * rows).sum()


def selected():
    return (table.index_select(0, labels) * rows).sum()


def same(function):
    def bits():
        found = function()
        if found.requires_grad:
            (found,) = torch.autograd.grad(found, table)
        return found.numpy().tobytes()

    return len({bits() for _ in range(20)}) == 1


for name, function in {
    "index_add": index_add,
    "scatter_add": scatter_add,
    "gradient of embedding": embedded,
    "gradient of index_select": selected,
}.items():
    found = [same(function)]
    for told in (False, True):
        torch.use_deterministic_algorithms(told)
        torch._dynamo.reset()
        found.append(same(torch.compile(function)))
    torch.use_deterministic_algorithms(False)
    print(f"{name}: {', '.join(map(str, found))}")
PYTHON
"$py" -W ignore "$tmp/sums.py" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
