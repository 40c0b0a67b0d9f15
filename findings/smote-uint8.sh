#!/usr/bin/env bash
# imbalanced-learn: SMOTE on uint8 pixels makes noise where it should interpolate
#
# Versions: imbalanced-learn 0.14.2 (2026-06), scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6.
# A synthetic image lies between two images of its class. The difference of the two is taken in the type of the pixels,
# so that in uint8 a step from 10 down to 0 is one of 246 up: every pixel that should get darker gets a value from
# anywhere above it. The result is uint8 again, and nothing warns.
# SMOTE, BorderlineSMOTE, ADASYN and SVMSMOTE share the line; int16 and wider and floating types are right. Because
# oversampling rare classes still helps a little, the loss shows only beside the same run in float32.
# Seen (pixels outside the two values between which they lie; digits with 120 images of 0 to 4 and 10 of 5 to 9:
# distance from a synthetic image to the nearest real one of its class, accuracy of 5 neighbours on 5 to 9):
#> uint8: 18 % of pixels outside, distance 475.3, accuracy 73.0 %
#> int16: 0 % of pixels outside, distance 107.9, accuracy 86.8 %
#> float32: 0 % of pixels outside, distance 107.9, accuracy 86.8 %
#> without synthetic images: accuracy 57.8 %
# Here: features are float32 before anything is computed with them;
# python_tests/test_neighbours.py::test_uint8_features_and_large_labels_are_those_numbers.
pins="imbalanced-learn==0.14.2 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=$tmp/venv/bin/python
python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins
"$py" -W ignore - >"$tmp/out" <<'PYTHON'
import numpy as np
from imblearn.over_sampling import SMOTE
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

two = np.repeat([[0, 10]], 100, axis=0)  # each pixel 0 or 10: what lies between is 0 to 10
pixels = np.random.default_rng(0).permuted(np.repeat(two, 8, axis=1), axis=1)
digits, label = load_digits(return_X_y=True)
digits, order = np.round(digits * (255 / 16)), [np.flatnonzero(label == c) for c in range(10)]
train = np.concatenate([rows[:n] for rows, n in zip(order, [120] * 5 + [10] * 5)])
test = np.concatenate([rows[120:] for rows in order[5:]])


def accuracy(x, y):
    return KNeighborsClassifier(5).fit(x.astype(float), y).score(digits[test], label[test])


for dtype in ("uint8", "int16", "float32"):
    made = SMOTE(random_state=0).fit_resample(pixels.astype(dtype), np.repeat([0, 1], [80, 20]))[0][100:]
    x, y = SMOTE(random_state=0).fit_resample(digits[train].astype(dtype), label[train])
    nearest = [
        np.linalg.norm(digits[train][label[train] == c] - image.astype(float), axis=1).min()
        for image, c in zip(x[len(train) :], y[len(train) :])
    ]
    print(f"{dtype}: {100 * ((made < 0) | (made > 10)).mean():.0f} % of pixels outside, ", end="")
    print(f"distance {np.mean(nearest):.1f}, accuracy {100 * accuracy(x, y):.1f} %")
print(f"without synthetic images: accuracy {100 * accuracy(digits[train], label[train]):.1f} %")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
