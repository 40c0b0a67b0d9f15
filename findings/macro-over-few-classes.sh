#!/usr/bin/env bash
# The same predictions for ten rare classes have a macro accuracy of 0.90, 0.30, or 1.00 when the second guess counts too
#
# Versions: torchmetrics 1.9.0 (2026-03), torcheval 0.0.7, scikit-learn 1.9.1, torch 2.14.1.
# "Few-shot accuracy" is the mean of the rare classes' accuracies, and the natural way to it is to keep the rows of these
# classes. torchmetrics' macro accuracy then divides by more classes than have rows: every other class that is once
# predicted in error counts as one with accuracy 0, so the mean falls with the number of classes that errors spread to,
# not with the number of errors. From top_k=2 on it leaves those classes out, so top-1 and top-2 are means over
# different classes. torcheval's macro accuracy and sklearn's balanced accuracy leave them out always;
# sklearn's macro recall counts them, and warns. Per class ("none") all agree.
# Seen (200 rows of classes 40 to 49 of 50, 180 right; 20 errors among 20 other classes, or all on one class):
#> torchmetrics top-1: 0.30, on one class 0.82
#> torchmetrics top-2: 1.00, on one class 1.00
#> torcheval top-1: 0.90, on one class 0.90
#> sklearn balanced: 0.90, on one class 0.90
#> sklearn macro recall: 0.30, on one class 0.82
# Here: groups of classes are means over the classes that have images (`shot_accuracy`);
# python_tests/test_metrics_shots.py::test_overall_weighs_images_and_groups_weigh_classes and
# python_tests/test_neighbours.py::test_few_shot_accuracy_whatever_the_errors_are_taken_for.
pins="torch==2.14.1 torchmetrics==1.9.0 torcheval==0.0.7 scikit-learn==1.9.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch.nn.functional import one_hot
from torcheval.metrics.functional import multiclass_accuracy as torcheval_accuracy
from torchmetrics.functional.classification import multiclass_accuracy

classes = 50
target = torch.arange(40, 50).repeat_interleave(20)
wrong = torch.arange(0, 200, 10)  # two of each class


def measures(taken_for):
    guess = target.clone()
    guess[wrong] = taken_for
    logits = 2.0 * one_hot(guess, classes) + one_hot(target, classes)  # the true class is first or second
    for k in (1, 2):
        yield f"torchmetrics top-{k}", multiclass_accuracy(logits, target, classes, "macro", k)
    yield "torcheval top-1", torcheval_accuracy(logits, target, average="macro", num_classes=classes)
    yield "sklearn balanced", balanced_accuracy_score(target, guess)
    yield "sklearn macro recall", recall_score(target, guess, average="macro")


for (name, spread), (_, together) in zip(measures(torch.arange(20)), measures(torch.tensor(0))):
    print(f"{name}: {spread:.2f}, on one class {together:.2f}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
