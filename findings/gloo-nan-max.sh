#!/usr/bin/env bash
# Whether gloo's MAX and MIN over ranks keep a NaN depends on which rank has it and at which index it stands
#
# Versions: torch 2.14.1 (gloo as built into it), four processes on one machine.
# torch.maximum and amax give NaN for NaN. all_reduce(MAX) does for some elements only: with NaN on one rank, some are
# NaN on all ranks, and others are the largest number of *some* of the other ranks (2 where 4 is right), NaN having
# swallowed what was compared before it. Ranks agree with one another, so nothing looks wrong. A check
# for "any rank's loss is not finite" or a maximum of logits over a sharded bank can miss the NaN it was written for.
# SUM keeps NaN.
# Seen (rank r holds three times r + 1, one rank NaN instead; the result on every rank):
#> MAX, NaN on rank 0: nan nan 4
#> MAX, NaN on rank 1: 1 1 nan
#> MAX, NaN on rank 2: 2 2 2
#> MAX, NaN on rank 3: 3 3 3
#> MIN, NaN on rank 0: nan nan 2
#> MIN, NaN on rank 1: 1 1 nan
#> MIN, NaN on rank 2: 1 1 2
#> MIN, NaN on rank 3: 1 1 2
# Here: MAX is taken of whole numbers alone (`oltr_ext/engine/distributed.py`), sums carry the loss.
pins="torch==2.14.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/ranks.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 4


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    for name in ("MAX", "MIN"):
        for bad in range(RANKS):
            x = torch.full((3,), float("nan") if rank == bad else rank + 1.0)
            dist.all_reduce(x, getattr(dist.ReduceOp, name))
            said = [None] * RANKS
            dist.all_gather_object(said, " ".join(f"{v:g}" for v in x.tolist()))
            if rank == 0:
                print(f"{name}, NaN on rank {bad}: {said[0] if len(set(said)) == 1 else said}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), RANKS)
PYTHON
GLOO_SOCKET_IFNAME=lo "$py" -W ignore "$tmp/ranks.py" "$tmp/store" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
