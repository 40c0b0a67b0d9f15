#!/usr/bin/env bash
# After a fused optimizer's step autograd no longer notices that weights it saved have changed: wrong gradients in place of an error
#
# Versions: torch 2.14.1, on a CPU.
# Two losses share a forward pass; the first is differentiated and stepped on, then the second is differentiated. The weights
# that its graph saved are others by now, and torch says so: "modified by an inplace operation". With `fused=True` the step
# writes the same numbers but leaves the tensors' version counters as they were: no error, and the second gradient is made of
# old activations and new weights. SGD, Adam, AdamW and Adagrad do so; `foreach` and the plain loop do not. Whatever else goes by
# `_version` (caches of what was derived from weights) is stale likewise.
# Seen (versions that a step moves the weight by; what the second backward does, and its gradient beside the right one, 12):
#> SGD plain: 1, RuntimeError
#> SGD foreach: 1, RuntimeError
#> SGD fused: 0, gradient 10.5
#> Adam plain: 1, RuntimeError
#> Adam foreach: 1, RuntimeError
#> Adam fused: 0, gradient 10.5
#> AdamW plain: 1, RuntimeError
#> AdamW foreach: 1, RuntimeError
#> AdamW fused: 0, gradient 10.5
#> Adagrad plain: 1, RuntimeError
#> Adagrad foreach: 1, RuntimeError
#> Adagrad fused: 0, gradient 10.5
# Here: what heads keep of their tensors is made anew after any optimizer's step (`oltr_ext/nn/mark.py`, `test_mark.py`).
pins="torch==2.14.1"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/steps.py" <<'PYTHON'
import torch

for name in ("SGD", "Adam", "AdamW", "Adagrad"):
    for how in ("plain", "foreach", "fused"):
        weight = torch.nn.Parameter(torch.tensor([2.0]))
        options = {"foreach": how == "foreach", "fused": how == "fused"}
        if name == "AdamW":
            options["weight_decay"] = 0.0
        # each of these steps goes from 2 to 1.8
        rate = 0.05 if name == "SGD" else 0.2
        optimizer = getattr(torch.optim, name)([weight], lr=rate, **options)
        shared = weight * weight
        first, second = shared.sum(), (shared * weight).sum()  # the second's gradient is 3 w^2, 12
        first.backward(retain_graph=True)
        before = weight._version
        optimizer.step()
        moved = weight._version - before
        weight.grad = None
        try:
            second.backward()
            done = f"gradient {weight.grad.item():.3g}"
        except RuntimeError:
            done = "RuntimeError"
        print(f"{name} {how}: {moved}, {done}")
PYTHON
"$py" -W ignore "$tmp/steps.py" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
