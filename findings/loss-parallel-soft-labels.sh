#!/usr/bin/env bash
# torch's loss_parallel: of soft labels cross_entropy has the right value and a gradient that lacks the softmax
#
# Versions: torch 2.14.1, gloo, on the CPU.
# `loss_parallel()` is for logits that are split by class, as a classifier over very many is. With class numbers as targets
# value and gradient are right. With probabilities (mixup, a teacher, smoothing by hand, or just ones and zeros) the value is
# right and the gradient is -target / rows instead of (softmax - target) / rows: it sums to -1 over the classes of an image
# where it should to 0, and never vanishes, so that logits grow for ever, those of frequent classes fastest.
# Training looks sound at first, as accuracy rises, and it is the rare classes that are lost. Without the context the
# same call is right. Known for other users of log_softmax in there (pytorch/pytorch issue 190746, open).
# Seen (two processes; 10 classes, each half as frequent as the one before; 100 steps of gradient descent on a linear
# classifier; sums of an image's gradient, loss, accuracy on all and on the seven rarer classes):
#> class numbers: sums 0, loss 0.10, accuracy 97%, rarer 92%
#> the same as probabilities: sums -1, loss 6.17, accuracy 88%, rarer 41%
#> probabilities, without the context: sums 0, loss 0.10, accuracy 97%, rarer 92%
# Here: the sharded cross-entropy, with label smoothing or without, is one op with a gradient of its own, tested against one
# process; python_tests/test_sharded_heads.py::test_processes_together_give_what_one_has.
pins="torch==2.14.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/ranks.py" <<'PYTHON'
import contextlib
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel

RANKS, CLASSES, IMAGES = 2, 10, 500


def work(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    torch.manual_seed(0)
    tail = torch.tensor([2.0 ** -k for k in range(CLASSES)])
    label = torch.multinomial(tail, IMAGES, replacement=True)
    x = torch.randn(CLASSES, 16)[label] + torch.randn(IMAGES, 16)
    hard, soft = label, F.one_hot(label, CLASSES).float()
    for name, target, context in (
        ("class numbers", hard, loss_parallel),
        ("the same as probabilities", soft, loss_parallel),
        ("probabilities, without the context", soft, contextlib.nullcontext),
    ):
        weight = distribute_tensor(torch.zeros(CLASSES, 16), mesh, [Shard(0)]).requires_grad_()
        rows = distribute_tensor(x, mesh, [Replicate()])
        y = distribute_tensor(target, mesh, [Replicate()])
        for step in range(100):
            logits = rows @ weight.T
            logits.retain_grad()
            with context():
                loss = F.cross_entropy(logits, y)
                (grad,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 0.5 * grad
        logits = (rows @ weight.detach().T).requires_grad_()
        with context():
            loss = F.cross_entropy(logits, y)
            loss.backward()
        total = logits.grad.full_tensor().sum(1) * IMAGES
        right = (logits.full_tensor().argmax(1) == label).float()
        value = loss.full_tensor().item()
        if rank == 0:
            print(
                f"{name}: sums {round(total.mean().item())}, loss {value:.2f}, "
                f"accuracy {right.mean():.0%}, rarer {right[label > 2].mean():.0%}",
                flush=True,
            )
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), RANKS)
PYTHON
GLOO_SOCKET_IFNAME=lo "$py" -W ignore "$tmp/ranks.py" "$tmp/store" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
