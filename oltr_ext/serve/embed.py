"""Images to embeddings: what a backbone makes of every split, written once to train on often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from oltr_ext._defaults import own_defaults
from oltr_ext.config.loading import config_names, load_config
from oltr_ext.config.schema import ListData
from oltr_ext.engine.checkpoint import SUFFIX
from oltr_ext.engine.features import write_features
from oltr_ext.engine.lock import locked
from oltr_ext.engine.splits import load_splits
from oltr_ext.serve.trained import load_embedder, load_trained

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
    with locked(Path(out), "a writing of embeddings", say):
        return write_features(
            embedder.model, splits, out, embedder.device, embedder.source, dtype=dtype
        )
