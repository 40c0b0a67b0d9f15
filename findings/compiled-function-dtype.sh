#!/usr/bin/env bash
# Whether a compiled autograd.Function that ends in `.to(torch.float32)` has a gradient depends on the dtype it computes in
#
# Versions: torch 2.11.0; 2.12.0, 2.13.0 and 2.14.1 are right.
# A Function of two results whose forward computes in some dtype and returns `value.to(torch.float32)`: eager, its gradient
# is right in each. Compiled (fullgraph, aot_eager; inductor alike), the gradient is zero where it computed in float32 already,
# for there `.to` gives back the tensor itself and the capture takes it for an intermediate; in float64 and bfloat16 the
# same code is right. No error, no warning, the forward is right: the part of a model behind it does not learn, in full
# precision alone. In-place operations in a forward do the same there (pytorch/pytorch issue 180642).
# Seen (largest gradient, of ones):
#> float64: eager 1, compiled 1
#> float32: eager 1, compiled 0
#> bfloat16: eager 1, compiled 1
# Here: the sharded ops return no `.to` without effect (`cast` in `oltr_ext/ops/shard.py`), which the oldest torch is tested on.
pins="torch==2.11.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/function.py" <<'PYTHON'
import torch


class Nearest(torch.autograd.Function):
    """Distance to the nearest row, and which it is."""

    @staticmethod
    def forward(ctx, x, bank, dtype):
        wide = (x[:, None].to(dtype) - bank[None].to(dtype)).square().sum(2)
        distance, index = wide.min(1)
        ctx.save_for_backward(bank, index)
        return distance.to(torch.float32), index

    @staticmethod
    def backward(ctx, grad, _):
        bank, index = ctx.saved_tensors
        return None, torch.zeros_like(bank).index_add(0, index, grad[:, None].expand(-1, bank.shape[1])), None


bank = torch.eye(4, requires_grad=True)
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    torch._dynamo.reset()

    def loss(x, bank):
        return Nearest.apply(x, bank, dtype)[0].sum()

    calls = (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))
    one, two = (torch.autograd.grad(call(torch.eye(4), bank), bank)[0].abs().max().item() for call in calls)
    print(f"{str(dtype).split('.')[1]}: eager {one:g}, compiled {two:g}")
PYTHON
"$py" -W ignore "$tmp/function.py" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
