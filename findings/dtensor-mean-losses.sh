#!/usr/bin/env bash
# DTensor: mse_loss over three processes has the right value and three times its gradient; other losses have the right one
#
# Versions: torch 2.14.1, gloo, on the CPU.
# A DTensor promises the numbers of a single device. The mean of some losses is kept as an average over W processes, and its
# backward pass divides by the elements of one of them instead of all: with equal parts, of rows or of columns, the
# loss is right and the gradients of mse_loss, huber_loss, smooth_l1_loss, soft_margin_loss and binary_cross_entropy are W
# times too long. Those of binary_cross_entropy_with_logits, l1_loss, kl_div and cross_entropy, of sums and of a mean
# spelled out are right; so one term of a sum of losses grows with the number of processes and the others do not. Where the
# parts are unequal the values are off too: they are means of the processes' means, and NaN where one of them has no
# row. Nothing warns.
# Seen (three processes, split by rows; loss over the true one, length of its gradient over the true one):
#> mse_loss: 6 rows 1.00, 3.00; 7 rows 0.87, 2.82; 4 rows nan, 2.00
#> huber_loss: 6 rows 1.00, 3.00; 7 rows 0.88, 3.25; 4 rows nan, 2.00
#> smooth_l1_loss: 6 rows 1.00, 3.00; 7 rows 0.88, 3.25; 4 rows nan, 2.00
#> soft_margin_loss: 6 rows 1.00, 3.00; 7 rows 0.97, 3.28; 4 rows nan, 2.00
#> binary_cross_entropy: 6 rows 1.00, 3.00; 7 rows 0.98, 3.68; 4 rows nan, 2.00
#> binary_cross_entropy_with_logits: 6 rows 1.00, 1.00; 7 rows 0.98, 1.00; 4 rows nan, 1.00
#> l1_loss: 6 rows 1.00, 1.00; 7 rows 1.00, 1.00; 4 rows 1.00, 1.00
#> kl_div: 6 rows 1.00, 1.00; 7 rows 1.00, 1.00; 4 rows 1.00, 1.00
#> cross_entropy: 6 rows 1.00, 1.00; 7 rows 1.00, 1.00; 4 rows 1.00, 1.00
#> mse_loss, sum: 6 rows 1.00, 1.00; 7 rows 1.00, 1.00; 4 rows 1.00, 1.00
#> square().mean(): 6 rows 1.00, 1.00; 7 rows 1.00, 1.00; 4 rows 1.00, 1.00
# Here: ops refuse a DTensor and sum over processes themselves;
# python_tests/test_sharded_ops.py::test_processes_together_give_what_one_has (an unequal share, and a refusal, among its cases).
pins="torch==2.14.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/ranks.py" <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

RANKS = 3
LOSSES = {
    "mse_loss": F.mse_loss,
    "huber_loss": F.huber_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "soft_margin_loss": F.soft_margin_loss,
    "binary_cross_entropy": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y),
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "l1_loss": F.l1_loss,
    "kl_div": lambda x, y: F.kl_div(x.log_softmax(1), y),
    "cross_entropy": F.cross_entropy,
    "mse_loss, sum": lambda x, y: F.mse_loss(x, y, reduction="sum"),
    "square().mean()": lambda x, y: (x - y).square().mean(),
}


def work(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for name, loss in LOSSES.items():
        told = []
        for rows in (6, 7, 4):
            torch.manual_seed(rows)
            x, y = torch.randn(rows, 6), torch.rand(rows, 6)
            plain = x.clone().requires_grad_()
            want = loss(plain, y)
            want.backward()
            parts = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
            got = loss(parts, distribute_tensor(y, mesh, [Shard(0)]))
            got.backward()
            longer = parts.grad.full_tensor().norm() / plain.grad.norm()
            told.append(f"{rows} rows {got.full_tensor() / want:.2f}, {longer:.2f}")
        if rank == 0:
            print(f"{name}: " + "; ".join(told), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), RANKS)
PYTHON
GLOO_SOCKET_IFNAME=lo "$py" -W ignore "$tmp/ranks.py" "$tmp/store" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
