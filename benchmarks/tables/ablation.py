"""What each part of OLTR and each of our changes is worth, on the embedded icons, one off in turn:
`python benchmarks/tables/ablation.py`, after `tune.py icons`."""

from compare import Row, Table, make
from runs import SLOW

PARTS = {
    "no memory feature": ("stage2.without=[memory]",),
    "no selector": ("stage2.without=[selector]",),
    "no reachability": ("stage2.without=[reachability]",),
    "none of the three": ("stage2.without=[memory, selector, reachability]",),  # cosine classifier
    "no centroid loss": ("stage2.feature_loss_weight=0",),
}
# The released code's defects, each alone back in place. Its centroid gradient, weight decay and
# fc are one switch there (`oltr-official` has them all).
MENDS = {
    "random fc": ("stage2.fc_start=default",),
    "released centroid gradient and decay": ("stage2.compat=official",),
}
PLUS = {
    "no class prior in stage 2": ("stage2.class_prior=0",),
    "a class prior in stage 1 too": ("stage1.class_prior=1",),
    "no label smoothing": ("stage2.label_smoothing=0",),
    "class-aware batches": ("stage2.sampler=class_aware", "stage2.class_prior=0"),
    "classifier from random": ("stage2.classifier_init=random",),
    "selector from random": ("stage2.selector_init=random",),
    "backbone at a tenth of its rate": ("stage2.lr.feature=0.01",),
    "no warm-up": ("stage1.schedule.warmup=0",),
    "cosine stage 1": ("stage1.schedule.kind=cosine",),
    "with attention": ("stage2.attention=true",),
}


def rows(method: str, changes: dict[str, tuple[str, ...]]) -> list[Row]:
    return [Row(f"{method}: {name}", method, change) for name, change in changes.items()]


if __name__ == "__main__":
    make(
        Table(
            "ablation",
            "Ablations on the embedded icons",
            "icons",
            tuple(range(3)),
            (
                Row("oltr", "oltr"),
                *rows("oltr", {**PARTS, "no attention": ("stage2.attention=false",), **MENDS}),
                Row("oltr-official", "oltr-official"),
                Row("oltr-plus", "oltr-plus"),
                *rows("oltr-plus", {**PARTS, **PLUS}),
            ),
            SLOW,
        )
    )
