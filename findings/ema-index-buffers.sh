#!/usr/bin/env bash
# An exponential moving average of a network that never changes is another network: Swin's position indices move by one
#
# Versions: torch 2.14.1, torchvision 0.29.1, on the CPU.
# AveragedModel(use_buffers=True), which batch norm's statistics call for, averages integer buffers too, and cuts off what
# is left of them: decay * 3 + (1 - decay) * 3 is 2.9999999 and becomes 2. Which integers shrink is a matter of the decay:
# none of these up to 961 at 0.99 and 0.999, many at 0.9 and at 0.9999, the decay that most recipes have. Swin keeps its
# relative position indices in such buffers, so its average looks up other biases. Nothing warns.
# Seen, 50 updates from the same network (decay: indices changed of 28,812; the number 3 in a buffer of its own):
#> 0.9: 7932, 2
#> 0.99: 0, 3
#> 0.999: 0, 3
#> 0.9999: 5004, 3
# Here: buffers of our heads that are read as indices are float64 and rounded where they are read;
# python_tests/test_heads_in_torch.py.
pins="torch==2.14.1 torchvision==0.29.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import swin_t

swin = swin_t(weights=None)
alone = nn.Module()
alone.register_buffer("three", torch.tensor([3]))


def average(net, decay):
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(50):
        averaged.update_parameters(net)
    return dict(averaged.module.named_buffers())


for decay in (0.9, 0.99, 0.999, 0.9999):
    after = average(swin, decay)
    changed = sum(int((after[name] != was).sum()) for name, was in swin.named_buffers())
    print(f"{decay}: {changed}, {average(alone, decay)['three'].item()}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
