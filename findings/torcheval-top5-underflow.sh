#!/usr/bin/env bash
# torcheval: float16 probabilities have a top-5 accuracy of 1.00 where the logits have 0.70, and so does NaN
#
# Versions: torcheval 0.0.7 (2023), the newest; torch 2.14.1.
# Top-1 is an argmax. From k=2 on an image is right if fewer than k classes score higher than its own: those that score
# the same do not count, nor does anything beside NaN. A cosine classifier of the usual scale, 30 or 64, is so sure that
# in float16 all its probabilities but one or two are 0, which few think of as a tie: every image is then "in the top
# 2". Logits, and probabilities in float32 or bfloat16, are right. By the same rule a head of zeros, and a network that
# has diverged to NaN, have a top-5 accuracy and a reciprocal rank of 1.00, beside a top-1 accuracy of chance. hit_rate
# and reciprocal_rank share the rule, and none of their pages names it. torch's topk takes five, whatever they score.
# Seen (1,000 classes; of 2,000 images 60 % right, 10 % second, others far off; top-1, 2, 5, reciprocal rank; by topk):
#> scale 30, logits in float16: 0.60, 0.70, 0.70, MRR 0.65; topk 0.70
#> scale 30, probabilities in float32: 0.60, 0.70, 0.70, MRR 0.65; topk 0.70
#> scale 30, probabilities in bfloat16: 0.60, 0.70, 0.70, MRR 0.65; topk 0.70
#> scale 30, probabilities in float16: 0.60, 1.00, 1.00, MRR 0.80; topk 0.70
#> scale 64, logits in float16: 0.60, 0.70, 0.70, MRR 0.65; topk 0.70
#> scale 64, probabilities in float32: 0.60, 0.70, 0.70, MRR 0.65; topk 0.70
#> scale 64, probabilities in bfloat16: 0.60, 0.70, 0.70, MRR 0.65; topk 0.70
#> scale 64, probabilities in float16: 0.60, 1.00, 1.00, MRR 0.80; topk 0.70
#> zeros: 0.00, 1.00, 1.00, MRR 1.00; topk 0.00
#> NaN: 0.00, 1.00, 1.00, MRR 1.00; topk 0.00
# Here: accuracies are of the first answer alone.
pins="torch==2.14.1 torcheval==0.0.7 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import torch
from torch.nn.functional import normalize
from torcheval.metrics.functional import hit_rate, multiclass_accuracy, reciprocal_rank

torch.manual_seed(0)
classes, rows, width = 1000, 2000, 512
target = torch.arange(rows) % classes
centre = normalize(torch.randn(classes, width), dim=1)
seen = torch.where(torch.arange(rows) < 1200, target, (target + 500) % classes)
near = centre[seen]  # from 1200 on like another class
near[1200:1400] += 0.8 * centre[target[1200:1400]]  # and somewhat like its own
cosine = normalize(near + 0.03 * torch.randn(rows, width), dim=1) @ centre.t()


def show(what, score):
    right = [multiclass_accuracy(score, target, num_classes=classes, k=k) for k in (1, 2, 5)]
    assert hit_rate(score, target, k=5).mean() == right[-1]
    rank = reciprocal_rank(score, target).mean()
    best = (score.topk(5, dim=1).indices == target[:, None]).any(1).float().mean()
    print(f"{what}: " + ", ".join(f"{share:.2f}" for share in right) + f", MRR {rank:.2f}; topk {best:.2f}")


for scale in (30, 64):
    logits = scale * cosine
    show(f"scale {scale}, logits in float16", logits.half())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        show(f"scale {scale}, probabilities in {str(dtype)[6:]}", logits.to(dtype).softmax(dim=1))
show("zeros", torch.zeros(rows, classes))
show("NaN", torch.full((rows, classes), float("nan")))
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
