"""A trained model to ask, as `oltr_ext.load` gives it: one question, one kind of answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oltr_ext._defaults import own_defaults
from oltr_ext._words import counted
from oltr_ext.serve.discover import Discovery, discover
from oltr_ext.serve.enroll import (
    Class,
    Enrolled,
    classes,
    enroll,
    remove,
    rename,
    save,
    undo,
)
from oltr_ext.serve.hub import located, push_to_hub, save_pretrained
from oltr_ext.serve.inputs import taken
from oltr_ext.serve.predict import (
    Named,
    Prediction,
    answers,
    image_features,
    row_features,
)
from oltr_ext.serve.sets import DEFAULT, SetAnswer
from oltr_ext.serve.trained import Trained, load_trained

__all__ = ["Model", "Predictions", "load"]


class Predictions(Sequence[Prediction]):
    """Answers in the order of what was asked; a field of all of them is a column of that name.

    ``answers[0].label`` is one label or None, ``answers.label`` all of them, and likewise for each
    field of `Prediction`. A slice is `Predictions` again.
    """

    def __init__(self, answers: Iterable[Prediction]) -> None:
        self._answers = list(answers)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        found = self._answers[index]
        return found if isinstance(found, Prediction) else Predictions(found)

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        some = ", ".join(str(each.label or "unknown") for each in self[:5])
        return f"Predictions({some}{', ...' if len(self) > 5 else ''})"

    @property
    def label(self) -> NDArray[np.object_]:
        """(N,) names of classes, None for unknown."""
        return _objects(each.label for each in self)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,), False for unknown."""
        return np.array([each.known for each in self], np.bool_)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(N,) by the score that the model goes by; below `threshold` is unknown."""
        return np.array([each.confidence for each in self], np.float64)

    @property
    def score(self) -> NDArray[np.object_]:
        """(N,) name of the score."""
        return _objects(each.score for each in self)

    @property
    def threshold(self) -> NDArray[np.float64]:
        """(N,)"""
        return np.array([each.threshold for each in self], np.float64)

    @property
    def closed(self) -> NDArray[np.object_]:
        """(N,) the likeliest known class, whether or not it is the answer."""
        return _objects(each.closed for each in self)

    @property
    def nearest(self) -> list[list[tuple[str, float]]]:
        """The closest known classes of each, with distance or probability."""
        return [each.nearest for each in self]

    @property
    def path(self) -> NDArray[np.object_]:
        """(N,) the file, or ``image[n]`` or ``row[n]``."""
        return _objects(each.path for each in self)


class Model:
    """What `load` returns.

    Attributes:
        trained: the network, its configuration, its threshold and all else of the run.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    def __repr__(self) -> str:
        classes = counted(len(self.trained.roster.living), "class")
        return f"Model({str(self.trained.path)!r}, {classes})"

    @property
    def class_names(self) -> list[str]:
        """Names in the order of labels, which never shift: also of classes that were removed."""
        return self.trained.names

    @property
    def classes(self) -> list[Class]:
        """The classes it knows: id, name, whether trained or enrolled, of how many images, when."""
        return classes(self.trained.roster)

    @overload
    def predict(self, inputs: str | Path | Image.Image, *, nearest: int = 3) -> Prediction: ...
    @overload
    def predict(self, inputs: Any, *, nearest: int = 3) -> Any: ...
    @own_defaults()
    @torch.no_grad()
    def predict(self, inputs: Any, *, nearest: int = 3) -> Prediction | Predictions:
        """Label images or features, or say that they are unknown.

        Args:
            inputs: one image or a sequence of them: a file, an image of PIL, or uint8 pixels
                (H, W), (H, W, 3) or (H, W, 4), as an array or tensor; (N, H, W, 3) are N of them,
                (N, H, W) N grey ones.
                Or features as floats, (D,) of one or (N, D): for a model trained on embeddings such
                as those, for one trained on images what `oltr embed` makes with it.
            nearest: how many of the closest known classes to name.

        Returns:
            `Prediction` for one, `Predictions` for a sequence, of any length, of the same fields.

        Raises:
            FileNotFoundError: no such image. ValueError: no image; features of another width, NaN
                or infinity. TypeError: neither images nor features.
        """
        one, given = self._given(inputs, "predict")
        found = [
            answer
            for names, features in given
            for answer in answers(self.trained, features, names, nearest)
        ]
        return found[0] if one else Predictions(found)

    @own_defaults()
    @torch.no_grad()
    def predict_set(self, inputs: Any, alpha: float = 0.1, *, method: str = DEFAULT) -> Any:
        """The classes that images or features may be of: of those of known classes, a share of at
        least 1 - alpha has its own class in its set.

        That is split conformal prediction on the validation images, and holds on average for what
        is as they are: of classes as frequent, and met in the same way. A stranger has a set too,
        and `unknown` says what `predict` does.

        Args:
            inputs: as of `predict`.
            alpha: share of sets that may lack the true class, in (0, 1).
            method: ``shots`` holds 1 - alpha in each group of many-, medium- and few-shot classes,
                ``marginal`` over all with the smallest sets, ``pas``, ``class`` and ``interp``
                between: see `oltr_ext.nn.sets.set_thresholds`.

        Returns:
            `PredictionSet` for one, `PredictionSets` for a sequence.

        Raises:
            ValueError: no such method or alpha; a run without calibration scores, whose data are
                not there to make them of. Else as `predict`.
        """
        SetAnswer(self.trained, alpha, method)  # what is wrong with these is told at once
        one, given = self._given(inputs, "predict_set")
        given = list(given)
        with self.trained.model.head.reading():  # of one state of its classes
            asked = SetAnswer(self.trained, alpha, method)
            found = asked.gathered([row for names, x in given for row in asked(x, names)])
        return found[0] if one else found

    @overload
    def enroll(self, inputs: Any, names: str, *, more: bool = False) -> Enrolled: ...
    @overload
    def enroll(
        self, inputs: Any, names: Sequence[str], *, more: bool = False
    ) -> list[Enrolled]: ...
    @own_defaults()
    def enroll(
        self, inputs: Any, names: str | Sequence[str], *, more: bool = False
    ) -> Enrolled | list[Enrolled]:
        """Let new classes join, from a few images or features of each, without training.

        They are among the answers at once; `save` keeps them in the run.

        Args:
            inputs: as of `predict`.
            names: of the one class of all of them, or of the class of each.
            more: a name that was enrolled before gets these in addition.

        Returns:
            What became of the class, or of each in order of first appearance: its id, the class
            that was nearest, what its images were taken for, which are unlike the rest.

        Raises:
            ValueError: a name that is there, and in addition to that of `predict`: see
                `oltr_ext.serve.enroll.enroll`. The model stays as it was.
        """
        given = list(self._given(inputs, "enroll")[1])
        each = [names] * sum(len(n) for n, _ in given) if isinstance(names, str) else list(names)
        found = enroll(self.trained, given, each, more=more)
        return found[0] if isinstance(names, str) else found

    def rename(self, old: str, new: str) -> None:
        """Call a class otherwise; `save` keeps it.

        Raises:
            ValueError: no such class, or a name that is none or another class's.
        """
        rename(self.trained, old, new)

    def remove(self, names: str | Sequence[str]) -> None:
        """Make classes, trained or enrolled, no answer any more; `save` keeps it.

        What came last is forgotten and its id is free; any other keeps its id, for none to take.

        Raises:
            ValueError: no such class, or all of them. The model stays as it was.
        """
        remove(self.trained, [names] if isinstance(names, str) else names)

    def undo(self) -> None:
        """Take back the last change of the classes, saved or not; undone again, it is there again.

        Raises:
            ValueError: nothing was changed. ChangedError: see `save`.
        """
        undo(self.trained)

    def save(self) -> Path:
        """Write the classes as they are now into the run's model; all before is in memory alone.

        Whoever reads it at the same time, or after a kill, has the old one or the new one.

        Raises:
            ChangedError: others changed its classes since it was loaded; load it and change it
                again.
            BusyError: another process writes into the run. ValueError: it was loaded from what a
                run trains on from.
        """
        return save(self.trained)

    def save_pretrained(
        self, folder: str | Path, *, name: str = "", card: Mapping[str, Any] | None = None
    ) -> Path:
        """Write it, as it is now, for the Hugging Face Hub: model, configuration, card.

        Args, Raises: as of `oltr_ext.serve.hub.save_pretrained`.
        """
        return save_pretrained(self.trained, folder, name=name, card=card)

    def push_to_hub(self, repo_id: str, **how: Any) -> str:
        """The same into a repository of the Hub; returns the address of the commit.

        Args, Raises: as of `oltr_ext.serve.hub.push_to_hub`.
        """
        return push_to_hub(self.trained, repo_id, **how)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str = "auto", stream: bool = False, **how: Any
    ) -> Model:
        """`load`, told how the Hub is asked.

        Args:
            how: ``revision``, ``token``, ``cache_dir`` or ``local_files_only``.
        """
        return cls(load_trained(located(name, **how), device=device, stream=stream))

    def discover(
        self,
        inputs: Any,
        *,
        out: str | Path | None = None,
        nearest: int = 3,
        say: Callable[[str], None] = lambda _: None,
    ) -> Discovery:
        """Group what is unknown among images or features; `oltr discover` as a function.

        Args: as of `oltr_ext.serve.discover.discover`; `inputs` may also be folders.

        Returns:
            ``path``, ``group``, ``sure``, ``nearest``, ... of what is rejected, and ``groups``.
        """
        return discover(self.trained, inputs, out=out, nearest=nearest, say=say)

    def _given(self, inputs: Any, where: str) -> tuple[bool, Iterable[Named]]:
        """Whether it is one, and features under their names."""
        expected = "an image or features, or a sequence of them"
        one, images = taken(inputs, where, expected)
        if isinstance(images, np.ndarray):
            return one, row_features(self.trained, images)
        if one and isinstance(inputs, str | Path) and str(inputs).endswith(".npy"):
            one = False  # rows of a file of features
        return one, image_features(self.trained, images)


def load(run: str | Path, *, device: str = "auto", stream: bool = False) -> Model:
    """A trained model: the folder of a run, a checkpoint, a folder of `Model.save_pretrained`, or
    where there is no such file the name of a model on the Hugging Face Hub, ``owner/name``.

    Args:
        stream: leave the class banks in the file, for models larger than memory, as
            `load_trained` does.
        device: ``auto`` takes CUDA where there is one.

    Raises:
        CheckpointError: no such file or model, damaged, or of a run that has not ended an epoch.
        ValueError: no such device.
    """
    return Model.from_pretrained(run, device=device, stream=stream)


def _objects(values: Iterable[Any]) -> NDArray[np.object_]:
    """(N,), whatever the values are."""
    held = list(values)
    column = np.empty(len(held), np.object_)
    column[:] = held
    return column
