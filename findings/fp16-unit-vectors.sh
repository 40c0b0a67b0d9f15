#!/usr/bin/env bash
# In float16 the cosine of a vector with itself can be 0 or NaN, and a zero vector normalises to NaN
#
# Versions: torch 2.14.1, on the CPU.
# Two reasons meet. A norm over 65,504 is infinite in float16, and dividing by it makes zeros: `normalize`,
# `cosine_similarity` and `embedding(max_norm=1)` silently erase the row, while `renorm`, `rms_norm` and `layer_norm`
# keep the norm in float32 and are right. And the eps of 1e-12 or 1e-8 that should guard against division by zero is
# itself 0 in float16, so zero rows are NaN (bfloat16, which has that eps, gives 0). `cosine_embedding_loss` sums squares
# in float16, so it is NaN at a norm of 256 already. Gradient clipping by an infinite norm zeroes all gradients.
# Seen, for rows of 4,096 equal numbers, cosine with itself or length after normalising to 1:
#> norm 19200: cosine_similarity 1, normalize 1, renorm 1, embedding 1, loss nan, pow-sum inf
#> norm 128000: cosine_similarity 0, normalize 0, renorm 1, embedding 0, loss nan, pow-sum inf
#> norm 0: cosine_similarity nan, normalize nan, renorm 0, embedding 0, loss nan, pow-sum 0
#> norm 0 in bfloat16: cosine_similarity 0, normalize 0, renorm 0, embedding 0, loss 1, pow-sum 0
#> clip_grad_norm_(1) at norm 128000: gradient of length 0
# Here: norms are taken in float32 in every op; python_tests/test_neighbours.py::test_float16_norms_beyond_float16.
pins="torch==2.14.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import torch
import torch.nn.functional as F

n = 4096
for value, dtype in ((300.0, torch.float16), (2000.0, torch.float16), (0.0, torch.float16), (0.0, torch.bfloat16)):
    x = torch.full((1, n), value, dtype=dtype)
    length = lambda row: round(row.double().norm().item(), 2)
    got = {
        "cosine_similarity": round(F.cosine_similarity(x, x).item(), 2),
        "normalize": length(F.normalize(x)),
        "renorm": length(torch.renorm(x, 2, 0, 1.0)),
        "embedding": length(F.embedding(torch.tensor([0]), x.clone(), max_norm=1.0)),
        "loss": round(F.cosine_embedding_loss(x, x, torch.ones(1)).item(), 2),
        "pow-sum": x.pow(2).sum().sqrt().item(),
    }
    where = " in bfloat16" if dtype == torch.bfloat16 else ""
    print(f"norm {value * n**0.5:.0f}{where}: " + ", ".join(f"{k} {v:g}" for k, v in got.items()))
p = torch.nn.Parameter(torch.zeros(n, dtype=torch.float16))
p.grad = torch.full((n,), 2000.0, dtype=torch.float16)
torch.nn.utils.clip_grad_norm_([p], 1.0)
print(f"clip_grad_norm_(1) at norm 128000: gradient of length {p.grad.double().norm().item():g}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
