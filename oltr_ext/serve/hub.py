"""A trained model as a folder for the Hugging Face Hub, and found by its name there.

The folder holds `model.safetensors`, which is the run's model and all that is read back, and for
people and the Hub's pages `config.json` and a card, `README.md`. The extra ``hub`` is wanted for
the card and for the Hub itself; a folder is read without it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from oltr_ext._files import write_whole
from oltr_ext._version import __version__
from oltr_ext._words import counted
from oltr_ext.engine import checkpoint, enrolment
from oltr_ext.engine.base import with_base
from oltr_ext.metrics import json_ready
from oltr_ext.serve.assess import REPORT
from oltr_ext.serve.enroll import check_same_model
from oltr_ext.serve.inputs import row_width
from oltr_ext.serve.trained import Trained, digest_of

__all__ = ["located", "push_to_hub", "save_pretrained"]

CONFIG, CARD = "config.json", "README.md"
LIBRARY = "oltr_ext"
"""What `config.json` and the card call it."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Of a model on the Hub."""

CLOSED = ("overall", "many", "medium", "few")
OPEN = (("auroc", "AUROC"), ("fpr95", "FPR at 95 % of known"), ("oscr", "OSCR"))


def located(run: str | Path, **how: Any) -> Path:
    """Where a run, a model or a folder of `save_pretrained` is; one of the Hub's is fetched there.

    What exists here is meant before what the Hub may have, and so is what would be in a folder that
    does.

    Args:
        how: ``revision``, ``token``, ``cache_dir`` and ``local_files_only`` of
            `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: neither here nor there.
    """
    path, name = Path(run), str(run)
    is_name = isinstance(run, str) and NAME.fullmatch(name) and not path.parent.exists()
    if path.exists() or not is_name:
        return path
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise checkpoint.CheckpointError(
            f"no run or model {name} here; for one on the Hub: pip install oltr_ext[hub]"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[checkpoint.MODEL, CONFIG], **how))
    except (OSError, ValueError) as error:  # the Hub's own are one or the other
        reason = str(error).strip().split("\n")[0]
        raise checkpoint.CheckpointError(
            f"no run or model {name} here, and none to be had of the Hub: {reason}"
        ) from None


def save_pretrained(
    trained: Trained, folder: str | Path, *, name: str = "", card: Mapping[str, Any] | None = None
) -> Path:
    """Write a model, its classes as they are now, with a configuration and a card to read.

    Paths of this machine stay here: of each the last part is written. What a tuned model stands on
    is in it. The card has the figures of the run's report, where `oltr eval` has made one of this
    model.

    Args:
        name: what the card calls it, and loads it by; default: the folder.
        card: metadata of the card in addition, as of `huggingface_hub.ModelCardData`: ``license``,
            ``datasets``, ``language``, ...

    Raises:
        RuntimeError: the extra ``hub`` is missing. ValueError: a backbone that a folder describes;
            the folder of a run. FileExistsError: a file of one of the three names, in a folder that
            this did not write. ChangedError: the run was trained anew since it was read.
    """
    folder, backbone = Path(folder), trained.config.model.backbone
    if Path(backbone.partition(":")[2]).is_absolute():
        raise ValueError(
            f"save_pretrained: {trained.path} has the backbone {backbone}, which nobody can build "
            "where that folder is not: train with a name that open_clip knows"
        )
    if (folder / checkpoint.LAST).exists() or (folder / checkpoint.LOG).exists():
        raise ValueError(
            f"save_pretrained: {folder} is the folder of a run, whose model would be written over; "
            "choose another"
        )
    _check_ours(folder)
    name = name or folder.resolve().name
    _hub()  # first, as it may want the extra
    read, header = checkpoint.load(trained.path)
    check_same_model(trained, header)
    text = _card(trained, name, dict(card or {}), _judged(trained, digest_of(trained, read)))
    whole = with_base(trained.model, read, header)
    tensors, header = enrolment.put(trained.enrolment, *whole)
    header["config"] = _without_folders(header["config"])
    if "source" in header["shape"]:
        header["shape"] = {**header["shape"], "source": _without_folders(header["shape"]["source"])}
    about = {
        "library_name": LIBRARY,
        "oltr_ext_version": __version__,
        "id2label": {id: entry.name for id, entry in enumerate(trained.roster) if entry.alive},
        "image_shape": list(trained.image_shape),
        "threshold": trained.threshold,
        "oltr_ext": header["config"],
    }
    said = json.dumps(json_ready(about), indent=1, ensure_ascii=False) + "\n"
    # first what says whose folder it is: after a kill it is written again
    write_whole(folder / CONFIG, said.encode())
    checkpoint.save(folder / checkpoint.MODEL, tensors, header)
    write_whole(folder / CARD, text.encode())
    return folder


def _check_ours(folder: Path) -> None:
    """Refuses to write over what `save_pretrained` did not write."""
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = None
    if isinstance(said, dict) and said.get("library_name") == LIBRARY:
        return
    for name in (CARD, CONFIG, checkpoint.MODEL):
        if (folder / name).exists():
            raise FileExistsError(
                f"save_pretrained: {folder / name} is there and not of a folder that this wrote; "
                "choose another"
            )


def push_to_hub(
    trained: Trained,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Push model using oltr_ext",
    card: Mapping[str, Any] | None = None,
) -> str:
    """Write it as `save_pretrained` into a repository of the Hub, made where there is none.

    A card that is there may have been written by hand: it stays, unless `card` is given.

    Returns:
        The address of the commit.

    Raises:
        RuntimeError: the extra ``hub`` is missing. What huggingface_hub raises.
    """
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as held:
        folder = save_pretrained(trained, held, name=repo_id, card=card)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if card is None and api.file_exists(repo, CARD, revision=revision):
            (folder / CARD).unlink()
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=commit_message
        )
    return str(done.commit_url)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise RuntimeError(
            "the card and the Hub want huggingface_hub: pip install oltr_ext[hub]"
        ) from None
    return huggingface_hub


def _without_folders(value: Any) -> Any:
    """The same, with the last part in place of each absolute path."""
    if isinstance(value, Mapping):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name or "data"
    return value


def _judged(trained: Trained, digest: str) -> dict[str, Any] | None:
    """What a report in the run's folder, or the one above, says of this model and no other.

    A report from before it held a digest is of this model only where no class joined or went.
    """
    folder, threshold = trained.path.parent.resolve(), trained.threshold
    for place in (folder, folder.parent):
        try:
            said = json.loads((place / REPORT).with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for method in said.get("methods", []):
            summary = method["summary"]
            mine = summary.get("model") == digest
            if "model" not in summary and not trained.enrolment.changed:
                told = (method["score_name"], method["threshold"], "enrolled" in summary)
                mine = told == (threshold["score"], threshold["value"], False)
            if mine:
                return {**method, "shots": said["shots"], "samples": said["samples"]}
    return None


def _card(trained: Trained, name: str, more: dict[str, Any], judged: dict[str, Any] | None) -> str:
    hub = _hub()
    results = []
    if judged is not None:
        for key, called in (*((k, f"accuracy, {k}") for k in CLOSED), *OPEN):
            value = judged["headline"].get(key)
            if value is not None:
                results.append(
                    hub.EvalResult(
                        task_type="image-classification",
                        dataset_type=trained.config.data.kind,
                        dataset_name="test images of the run",
                        metric_type="accuracy" if key in CLOSED else key,
                        metric_name=called,
                        metric_value=value,
                    )
                )
    base = {
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": ["open-set-recognition", "long-tailed-recognition"],
        "model_name": name,
        "eval_results": results or None,
    }
    data = hub.ModelCardData(**{**base, **more})
    return f"---\n{data.to_yaml().strip()}\n---\n\n{_words(trained, name, judged)}"


def _words(trained: Trained, name: str, judged: dict[str, Any] | None) -> str:
    config, roster = trained.config, trained.roster
    counts = sorted(trained.train_counts, reverse=True)
    joined = len(trained.enrolment.joined)
    embedded = config.data.kind == "embeddings"
    asked = "features" if embedded else '["cat.png", "house.png"]'
    takes = (
        f"features of {row_width(trained)} numbers"
        if embedded
        else "images, made {1} x {2} with {0} channels".format(*trained.image_shape)
    )
    threshold = trained.threshold
    facts = [
        ("classes", f"{len(roster.living):,}" + (f", {joined:,} enrolled" if joined else "")),
        ("training images", f"{sum(counts):,}, {counts[0]:,} to {counts[-1]:,} a class"),
        ("takes", takes),
        ("backbone", f"`{config.model.backbone}`"),
        ("head", f"`{type(trained.model.head).__name__}`"),
        ("unknown", f"`{threshold['score']}` below {threshold['value']:.4g}: {threshold['words']}"),
    ]
    lines = [
        f"# {name}",
        "",
        "Labels what it was trained on, rare classes as well as common ones, and answers "
        '"unknown" to the rest (`oltr_ext`).',
        "",
        "```python",
        "import oltr_ext",
        "",
        f'answers = oltr_ext.load("{name}").predict({asked})',
        "print(answers.label, answers.confidence)    # label None: unknown",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in facts),
        "",
    ]
    if judged is None:
        return "\n".join([*lines, "It has not been judged on test images.", ""])
    head = judged["headline"]
    point = judged["summary"]["scores"][threshold["score"]]["operating_points"]["calibrated"]
    known, strangers = judged["samples"]["known"], judged["samples"]["open"]
    figures = [
        *((f"accuracy, {key}", head.get(key)) for key in CLOSED),
        *((called, head.get(key)) for key, called in OPEN),
        ("known images accepted", point["known_accepted"]),
        ("unknown images rejected", point["open_rejected"]),
    ]
    return "\n".join(
        [
            *lines,
            f"On {counted(known, 'test image')} of the trained classes "
            f"({judged['shots']['convention']} "
            f"training images) and {strangers:,} of none of them, percent:",
            "",
            "| | |",
            "| --- | ---: |",
            *(
                f"| {called} | {'-' if value is None else f'{100 * value:.1f}'} |"
                for called, value in figures
            ),
            "",
        ]
    )
