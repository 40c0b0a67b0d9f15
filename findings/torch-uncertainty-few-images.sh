#!/usr/bin/env bash
# torch-uncertainty: prediction sets with a documented guarantee of 90 % cover 78 % of images after five for calibration
#
# Versions: torch-uncertainty 0.13.0 (2026-07), lightning 2.6.6, torchmetrics 1.9.0, torch 2.14.1.
# - ConformalClsTHR, APS and RAPS document P(covered) >= 1 - alpha, and take the plain, interpolated quantile of their n
#   calibration scores. The guarantee comes from the ceil((n + 1)(1 - alpha))-th score, and from no threshold at all where
#   n is too small for that; the plain quantile covers about (0.9 (n - 1) + 1) / (n + 1). Nobody sees it at 500 images,
#   and everybody meets it who calibrates a rare class, a site or a season by itself. Nothing warns.
# - CoverageRate(average="macro"), which should show such classes, counts those without test images as never covered.
# Seen (10 classes, sets for 90 %, mean of 200 calibrations, by their images):
#> ConformalClsTHR: 5: 0.78, 20: 0.86, 100: 0.89
#> ConformalClsAPS: 5: 0.79, 20: 0.87, 100: 0.90
#> macro coverage of 10 classes, all covered, where 90 others have no image: 0.1
# Here: sets take the finite-sample rank, and all classes where there are too few images for one;
# python_tests/test_sets.py::test_few_rows_and_none. Means over classes leave
# out those without images; python_tests/test_metrics_shots.py::test_means_over_classes.
pins="torch==2.14.1 torchvision==0.29.1 matplotlib==3.11.2 scipy==1.17.1 fsspec==2026.9.0 PyYAML==6.0.4 python-dateutil==4.0.0 tqdm==4.70.1 numpy==2.4.6"
alone="torch-uncertainty==0.13.0 lightning==2.6.6 pytorch-lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0
  einops==0.8.2 seaborn==0.13.2 pandas==3.1.1 rich==15.0.0 markdown-it-py==4.3.0 mdurl==0.1.2 Pygments==2.21.0
  jsonargparse==4.53.0 docstring-parser==0.18.0 typeshed-client==2.15.0 importlib-resources==7.1.0"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -m pip install -q --no-deps --target "$tmp/alone" $alone # with what they need they would bring another torch
PYTHONPATH=$tmp/alone "$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import torch
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset
from torch_uncertainty.metrics import CoverageRate
from torch_uncertainty.post_processing import ConformalClsAPS, ConformalClsTHR

torch.manual_seed(0)


def images(rows):
    label = torch.randint(10, (rows,))
    return torch.randn(rows, 10) + 1.5 * one_hot(label, 10), label


for method in (ConformalClsTHR, ConformalClsAPS):
    covered = {}
    for rows in (5, 20, 100):
        for _ in range(200):
            sets = method(alpha=0.1, model=torch.nn.Identity(), enable_ts=False)
            sets.fit(DataLoader(TensorDataset(*images(rows)), batch_size=rows))
            logits, label = images(1000)
            hit = sets.conformal(logits).gather(1, label[:, None]) > 0
            covered[rows] = covered.get(rows, 0) + hit.double().mean().item() / 200
    print(f"{method.__name__}: " + ", ".join(f"{rows}: {share:.2f}" for rows, share in covered.items()))

coverage = CoverageRate(num_classes=100, average="macro")
coverage.update(one_hot(torch.arange(10), 100).bool(), torch.arange(10))
print(f"macro coverage of 10 classes, all covered, where 90 others have no image: {coverage.compute():.1f}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
