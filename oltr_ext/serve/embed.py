"""Images to embeddings: what a backbone makes of every split, written once to train on often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from oltr_ext.config.loading import config_names, load_config
from oltr_ext.config.schema import ListData
from oltr_ext.data import FeatureStream, write_embeddings
from oltr_ext.engine.build import own_defaults
from oltr_ext.engine.checkpoint import SUFFIX
from oltr_ext.engine.evaluate import BATCH, stream
from oltr_ext.engine.lock import locked
from oltr_ext.engine.splits import Images, Splits, load_splits
from oltr_ext.serve.trained import Embedder, load_embedder, load_trained

__all__ = ["embed"]


@own_defaults()
def embed(
    path: str | Path,
    out: str | Path,
    *,
    overrides: Iterable[str] = (),
    dtype: str = "float32",
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the features of every split of a configuration's images; see `write_embeddings`.

    Eval mode and test transform. What a killed call has written is not made again.

    Args:
        path: a checkpoint or the folder of a run, whose features are those its head sees; or a
            configuration, whose backbone has published weights (``model.weights``).
        out: folder of the embeddings.
        overrides: ``key.path=value`` on the configuration, that of the checkpoint included.
        dtype: of the files, ``float32`` or ``float16``.
        say: gets a line of text where there is something to know.

    Returns:
        The path of the manifest.

    Raises:
        ValueError, FileNotFoundError: see `load_embedder`, `load_splits` and `write_embeddings`; an
            image that cannot be read, whatever `data.max_bad_images`.
        BusyError: another process writes to `out`.
    """
    path = Path(path)
    if str(path) not in config_names() and (path.is_dir() or path.suffix == SUFFIX):
        trained = load_trained(path, device=device, overrides=overrides)
        embedder = load_embedder(trained.config, trained, device=device)
    else:
        embedder = load_embedder(load_config(path, overrides), device=device)
    data = embedder.config.data
    if isinstance(data, ListData):  # a row is made for each image, or none
        data = data.model_copy(update={"max_bad_images": 0})
    splits = load_splits(data)
    parts: dict[str, list[Images]] = {
        "train": [splits.plain],
        "val": [splits.val],
        "test": [splits.test],
        "open_val": [] if splits.open_val is None else [splits.open_val],
        "open_test": splits.opened,
    }
    shown = sum(map(len, [splits.test, *splits.opened]))
    with locked(Path(out), say):
        return write_embeddings(
            out,
            {
                name: (
                    _features(embedder, name, images, splits),
                    np.concatenate([each.labels for each in images]),
                )
                for name, images in parts.items()
                if images
            },
            splits.class_names,
            dtype=dtype,
            test_ids=[splits.image_id(i) for i in range(shown)],
            open_names=splits.open_names,
            open_sets=splits.sets_of_open(),
            source={**embedder.source, "data": splits.fingerprint},
        )


def _features(
    embedder: Embedder, name: str, parts: Sequence[Images], splits: Splits
) -> FeatureStream:
    total = sum(map(len, parts))

    def start(row: int) -> Iterator[Tensor]:
        with tqdm(total=total, initial=row, desc=name, unit="row", disable=None) as bar:
            for images in parts:
                first, row = row, max(row - len(images), 0)
                if first >= len(images):
                    continue
                begin = first // BATCH * BATCH  # the batches of a writing without interruption
                for features, _ in stream(
                    embedder.model, images, embedder.device, workers=splits.workers, start=begin
                ):
                    kept, begin = features[max(first - begin, 0) :], begin + len(features)
                    yield kept
                    bar.update(len(kept))

    return FeatureStream((total, embedder.model.feature_dim), start, batch=BATCH)
