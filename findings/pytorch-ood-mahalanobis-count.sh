#!/usr/bin/env bash
# pytorch-ood's Mahalanobis score is the distance divided by the number of training images
#
# Versions: pytorch-ood 0.4.0 (2026-10), torch 2.14.1.
# Documented is half the squared Mahalanobis distance; the "covariance" that is inverted is the sum of squares, never
# divided by their number, so scores shrink as 1/N: the same data given ten times makes them ten times smaller. The order
# of images stays, and so does AUROC; what breaks is every threshold kept from another training set or taken from
# chi-squared, and every sum with another score. The ridge of 1e-6, added to the sum, is N times weaker than it reads.
# The same package's GMM divides, and agrees with the formula.
# Seen (500 images; true half squared distance over the score, and the score over that of the data given ten times):
#> Mahalanobis: true / score 500, score / score of tenfold data 10
#> RMD: score / score of tenfold data 10
#> GMM of one class: differences between images equal the true ones
# Here: pooled covariances are means over the training rows; a score of ours is tested against the formula in float64.
pins="torch==2.14.1 pytorch-ood==0.4.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import torch
from pytorch_ood.detector import GMM, RMD, Mahalanobis

torch.manual_seed(0)
x, one, query = torch.randn(500, 8), torch.zeros(500, dtype=torch.long), torch.randn(4, 8)
away = (query - x.mean(0)).double()
true = 0.5 * (away @ torch.cov(x.T.double(), correction=0).inverse() * away).sum(1)


def score(kind, times, label=one):
    return kind(None).fit_features(x.repeat(times, 1), label.repeat(times)).predict_features(query).double()


ratio = lambda a, b: f"{(a / b).mean().item():.0f}" if (a / b).std() < 1e-2 * (a / b).mean() else "varies"
print(
    f"Mahalanobis: true / score {ratio(true, score(Mahalanobis, 1))}, "
    f"score / score of tenfold data {ratio(score(Mahalanobis, 1), score(Mahalanobis, 10))}"
)
two = torch.arange(500) % 2
print(f"RMD: score / score of tenfold data {ratio(score(RMD, 1, two), score(RMD, 10, two))}")
gmm = score(lambda encoder: GMM(encoder, reg=0), 1)
equal = torch.allclose(gmm - gmm[0], true - true[0], atol=1e-4)
print(f"GMM of one class: differences between images {'equal' if equal else 'are not'} the true ones")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
