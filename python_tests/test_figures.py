"""Pages quote figures of tables: they are those that the tables have now."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tables"

FIGURES = {
    "benchmarks/tables/README.md": {
        "icons": (
            "from {openmax/overall} and {openmax/few} to {logit-adjustment/overall} and "
            "{logit-adjustment/few} % on the icons",
            "a little behind on the icons ({ncm/overall} and {ncm/few})",
            "in the configuration ({balanced-softmax/overall} on the icons",
            "beat it on the icons ({range/overall} and {lifted/overall})",
            "AUROC {oltr-plus/auroc} on the icons (`lifted` {lifted/auroc}, `plain` {plain/auroc})",
            "({oltr/few} against {plain/few}, {oltr/auroc} against {plain/auroc})",
            "(AUROC {oltr/@nearest_distance} against {oltr-official/@nearest_distance})",
            "(AUROC {openmax/auroc} against {openmax/@max_softmax} on the icons",
            "few-shot {focal/few} on the icons, where plain training has {plain/few}",
        ),
        "icons_embedded": (
            "worse overall than plain ({ncm/overall} against {plain/overall}",
            "takes `plain` from {plain/@gen}, the best of its logits, to {plain/auroc}, `range` "
            "and `lifted` to {lifted/auroc}, `balanced-softmax` to {balanced-softmax/auroc} and "
            "`oltr` to {oltr/auroc}",
            "which has {oltr-plus/@max_logit} by its largest logit and {oltr-plus/@gen} by `gen`, "
            "gets {oltr-plus/auroc} by",
            "it gains on that, {openmax/auroc} against {openmax/@max_softmax}",
            "`oltr-plus` {oltr-plus/overall} overall, few-shot {oltr-plus/few}, AUROC "
            "{oltr-plus/auroc}; `balanced-softmax` {balanced-softmax/overall}, "
            "{balanced-softmax/few} and {balanced-softmax/auroc}; `plain` {plain/overall}, "
            "{plain/few} and {plain/auroc}",
        ),
        "glyphs_2000": (
            "from {openmax/overall} and {openmax/few} (`openmax`, which has the same stage 1) to "
            "{logit-adjustment/overall} and {logit-adjustment/few} % on 2,000 characters",
            "`ncm` is better there ({ncm/overall} and {ncm/few}, `tau-norm` {tau-norm/overall} and "
            "{tau-norm/few}",
            "`ncm` on 2,000 characters ({ncm/overall}, `oltr-plus` {oltr-plus/overall}",
            "{balanced-softmax/overall} on 2,000 characters)",
            "`lifted` then gets {lifted/overall} (few-shot {lifted/few}; plain training "
            "{plain/overall} and {plain/few}), `range` {range/overall}",
            "{oltr-plus/auroc} on 2,000 characters, where any method may use those by the "
            "training's features (`tau-norm` {tau-norm/auroc}, `plain` {plain/auroc}, which has "
            "{plain/@max_softmax} by its head alone; FPR at 95 % {oltr-plus/fpr95}, "
            "`logit-adjustment` {logit-adjustment/fpr95})",
            "starves: {oltr/overall} % and {oltr-official/overall} % on 2,000 characters",
            "{oltr, from class means/overall}, AUROC {oltr, from class means/auroc}",
            "{openmax/auroc} against {openmax/@max_softmax} on 2,000 characters",
            "and {focal/few} on 2,000 characters, where it has {plain/few}",
        ),
        "glyphs_2000_seeds": (
            "over three seeds, {ncm/overall} and {ncm/few}, {tau-norm/overall} and {tau-norm/few})",
            "over three seeds, {ncm/overall ±} and {oltr-plus/overall ±})",
        ),
        "glyphs_18000": (
            "({ncm/overall} and {ncm/few} on 18,000, where plain has {plain/overall} and "
            "{plain/few}; `tau-norm` {tau-norm/overall} and {tau-norm/few}, logit adjustment "
            "{logit-adjustment/overall} and {logit-adjustment/few})",
            "`oltr-plus` gets {oltr-plus/overall} %, few-shot {oltr-plus/few} and AUROC "
            "{oltr-plus/auroc}. Plain training with `ncm` on top has {ncm/overall}, {ncm/few} and "
            "{ncm/auroc}",
            "plain has {plain/@max_softmax}, `ncm` {ncm/@max_softmax} and `oltr-plus` "
            "{oltr-plus/@max_softmax}",
            "`oltr` {oltr/overall}, from the class means {oltr, from class means/overall} with "
            "AUROC {oltr, from class means/auroc}",
        ),
        "icons_large": (
            "{oltr-plus/@gen} on the large icons (`focal` {focal/@gen}, `plain` {plain/@gen})",
            "lifts `plain` from {plain/@max_logit}, by the largest logit, to "
            "{plain/@nearest_feature} (validation chose the sum of both, {plain/auroc})",
            "of `oltr-plus`'s lead there, {oltr-plus/auroc}, nothing is left",
            "`ncm` {ncm/overall}, `lws` {lws/overall}, `crt` {crt/overall}, `lifted` "
            "{lifted/overall}, `range` {range/overall} and `fslwf` {fslwf/overall} against "
            "{plain/overall} for `plain`",
            "have {logit-adjustment/overall} and {balanced-softmax/overall}",
            "ahead of plain training overall ({oltr-plus/overall}), on many-shot ({oltr-plus/many} "
            "against {plain/many}) and on few-shot classes ({oltr-plus/few} against {plain/few})",
            "at 0.5 it gives {oltr-plus, half the prior/overall} and few-shot "
            "{oltr-plus, half the prior/few}, at 0.2 {oltr-plus, a fifth of the prior/overall} and "
            "{oltr-plus, a fifth of the prior/few}; with all classes alike (`balanced`, the "
            "default) {oltr-plus, all classes alike/overall} and "
            "{oltr-plus, all classes alike/few}",
        ),
        "icons_scores": (
            "AUROC of `plain` {plain/auroc}, `logit-adjustment` {logit-adjustment/auroc}, `oltr` "
            "{oltr/auroc}, `range` {range/auroc ±}, `oltr-plus` {oltr-plus/auroc ±}, `lifted` "
            "{lifted/auroc ±}",
            "overall ({oltr-plus/overall ±}, both of them {lifted/overall}) and few-shot "
            "({oltr-plus/few}, `lifted` {lifted/few}, `range` {range/few})",
            "`ncm` has {ncm/auroc} and `focal` {focal/auroc}; `openmax`, which keeps its own "
            "score, is last ({openmax/auroc})",
        ),
        "icons_epochs": (
            "`oltr-plus` goes from {oltr-plus, 30 epochs/overall} to {oltr-plus, 60 epochs/overall}"
            " (many-shot {oltr-plus, 30 epochs/many} to {oltr-plus, 60 epochs/many}",
            "`logit-adjustment` from {logit-adjustment, 30 epochs/overall} to "
            "{logit-adjustment, 60 epochs/overall}",
            "`range` from {range, 30 epochs/overall} to {range, 60 epochs/overall}",
            "({range, 60 epochs/auroc} and {oltr-plus, 60 epochs/auroc}), `logit-adjustment` "
            "behind ({logit-adjustment, 60 epochs/auroc})",
        ),
        "letters": (
            "(`balanced-softmax` {balanced-softmax/overall}), `range` on few-shot classes "
            "({range/few})",
            "({focal/auroc}, plain {plain/auroc} in that seed, `oltr-plus` {oltr-plus/auroc})",
        ),
        "letters_seeds": (
            "`oltr-plus` has {oltr-plus/overall ±} overall and {oltr-plus/few ±} on few-shot "
            "classes, `ncm` {ncm/overall} and {ncm/few}, plain training {plain/overall} and "
            "{plain/few}",
            "({oltr-plus/many}, plain {plain/many})",
            "{oltr-plus/auroc ±} beside {plain/auroc ±} of plain training",
            "it has {oltr-plus/@max_softmax}, `ncm` {ncm/@max_softmax}, plain {plain/@max_softmax}",
        ),
        "small_pictures": (
            "({crt/overall} both, `tau-norm` {tau-norm/overall}; few-shot {crt/few}, `tau-norm` "
            "{tau-norm/few})",
        ),
        "ablation": (
            "AUROC, {oltr: no selector/auroc} against {oltr/auroc} without the selector",
            "({oltr-plus/overall} overall, {oltr-plus/few} few-shot, AUROC {oltr-plus/auroc})",
        ),
    },
    "README.md": {
        "icons": (
            "| `plain` | {plain/overall ±} | {plain/many ±} | {plain/medium ±} | {plain/few ±} | "
            "{plain/auroc ±} |",
            "| `oltr-plus`, the same head, our training | **{oltr-plus/overall ±}** | "
            "{oltr-plus/many ±} | **{oltr-plus/medium ±}** | **{oltr-plus/few ±}** | "
            "**{oltr-plus/auroc ±}** |",
        ),
        "glyphs_2000": (
            "{plain/overall} / {plain/few} / {plain/auroc} | {ncm/overall} / {ncm/few} / "
            "{tau-norm/auroc} | **{oltr-plus/overall}** / **{oltr-plus/few}** / "
            "**{oltr-plus/auroc}** |",
        ),
        "icons_embedded": ("**{oltr-plus/overall}** / **{oltr-plus/few}** / {oltr-plus/auroc} |",),
    },
}
"""Of each page, by table, sentences with {row/column} for a figure: the mean over seeds, with ± its
deviation too; a column @score is the AUROC by that score."""


def figure(runs, asked):
    row, _, column = asked.removesuffix(" ±").rpartition("/")
    tests = [run["test"] for run in runs[row]]
    of = [t["auroc of"][column[1:]] if column[0] == "@" else t[column] for t in tests]
    return f"{np.mean(of):.1f}" + (f" ± {np.std(of, ddof=1):.1f}" if asked.endswith("±") else "")


@pytest.mark.parametrize(
    ("page", "table"), [(page, table) for page, tables in FIGURES.items() for table in tables]
)
def test_figures_of_methods(page, table):
    text = " ".join((ROOT / page).read_text().split())
    runs = json.loads((RESULTS / f"{table}.json").read_text())["runs"]
    for sentence in FIGURES[page][table]:
        assert re.sub(r"\{(.+?)\}", lambda asked: figure(runs, asked[1]), sentence) in text


def test_figures_of_enrolment():
    text = " ".join((ROOT / "oltr_ext/serve/README.md").read_text().split())
    sets = json.loads((RESULTS / "enroll.json").read_text())["sets"]
    old_out = {}
    for name, label in (("icons", "icons"), ("embedded", "features of them")):
        seeds = sets[name].values()

        def mean(way, images, key, seeds=seeds):
            return f"{np.mean([seed[way][images][key] for seed in seeds]):.1f}"

        for n in ("1", "5"):
            own = {key: mean("enrolled", n, key) for key in ("new", "old", "auroc", "old out")}
            out = {key: mean("enrolled", n, key) for key in ("new out", "unknown out")}
            was = {key: mean("before", "0", key) for key in ("old", "auroc", "old out")}
            row = [f"{own[key]}, {was[key]}" for key in was]
            strangers = f"{out['unknown out']}, {mean('before', '0', 'unknown out')}"
            cells = (n, label, own["new"], *row, out["new out"], strangers)
            assert f"| {' | '.join(cells)} |" in text
        old_out[name] = [own["old out"], was["old out"]]
    (now, before), (features, features_before) = old_out.values()
    assert (
        f"(icons {now} %, before {before}; features {features}, before {features_before})" in text
    )
    moved = [
        f"{seed['enrolled']['5']['old out'] - seed['before']['0']['old out']:+.1f}"
        for seed in sets["icons"].values()
    ]
    assert f"on the icons by {', '.join(moved[:-1])} and {moved[-1]} points" in text
