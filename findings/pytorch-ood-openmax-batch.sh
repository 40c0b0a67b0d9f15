#!/usr/bin/env bash
# pytorch-ood's OpenMax gives an image another score when other images are in the batch
#
# Versions: pytorch-ood 0.4.0 (2026-10), scipy 1.17.1, torch 2.14.1.
# The distances to a class are computed only if that class is the top one of some image in the batch; for the others among
# an image's `alpha` likeliest classes the distance is left at 0, which the Weibull model takes for "right at the centre".
# So the score depends on who else is in the batch, and the AUROC on the batch size, silently. One image at a time is
# judged by its top class alone; a batch in which every class is predicted is what the paper describes.
# Seen (five classes; outlier score of one image; AUROC of 200 known against 200 unknown ones, by batch size):
#> alone: 0.15, beside an image of the second likeliest class: 0.33
#> AUROC: 0.83 one by one, 0.75 by 8, 0.77 all at once
# Here: `OpenMaxHead` measures every class for every row;
# python_tests/test_neighbours.py::test_openmax_scores_a_row_alike_alone_and_in_a_batch.
pins="torch==2.14.1 pytorch-ood==0.4.0 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import torch
from pytorch_ood.detector import OpenMax
from sklearn.metrics import roc_auc_score

torch.manual_seed(0)
classes = 5


def logits(rows, height, noise=1.0):
    near = torch.nn.functional.one_hot(torch.arange(rows) % classes, classes)
    return noise * torch.randn(rows, classes) + height * near


detector = OpenMax(None, tailsize=20, alpha=3).fit_logits(logits(500, 4), torch.arange(500) % classes)
one, other = torch.tensor([[3.0, 2.9, 0, 0, 0]]), torch.tensor([[0, 5.0, 0, 0, 0]])
alone = detector.predict_logits(one)[0].item()
beside = detector.predict_logits(torch.cat([one, other]))[0].item()
print(f"alone: {alone:.2f}, beside an image of the second likeliest class: {beside:.2f}")

score = torch.cat([logits(200, 3), logits(200, 0, noise=1.5)])
label = [0] * 200 + [1] * 200
by = {n: roc_auc_score(label, torch.cat([detector.predict_logits(x) for x in score.split(n)])) for n in (1, 8, 400)}
print(f"AUROC: {by[1]:.2f} one by one, {by[8]:.2f} by 8, {by[400]:.2f} all at once")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
