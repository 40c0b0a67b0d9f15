"""Classes that join a trained head without training, and go again without a trace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from oltr_ext.nn.feature_bank import FeatureBank
from oltr_ext.nn.growing_bank import Changes
from oltr_ext.nn.layout import ClassRows
from oltr_ext.nn.rivals import Rivals
from oltr_ext.nn.room import Gate, Rooms
from oltr_ext.nn.roster import ENROLLED, TRAINED, ClassEntry, Roster


class ClassTensor(NamedTuple):
    """A parameter or buffer with a row a class."""

    module: nn.Module
    name: str

    @property
    def value(self) -> Tensor | None:
        tensor = getattr(self.module, self.name)
        assert tensor is None or isinstance(tensor, Tensor)
        return tensor

    def put(self, value: Tensor) -> None:
        old = self.value
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
        setattr(self.module, self.name, value)
        if isinstance(self.module, nn.Linear):
            self.module.out_features = len(value)


class Enrolling(ClassRows):
    """The classes of a head by id, and how they change.

    Attributes:
        removed: (H,) float64 whole numbers, ids that are no answer; None where there is none.
        enrolled: (K,) float64 whole numbers, images of each enrolled class, 0 where it was removed;
            None where there is none. Ids below ``num_classes - K`` are of trained classes.
        enrolled_means: (K, D) float32, the mean of all of their features.
    """

    OWN = ("removed", "enrolled", "enrolled_means")

    bank: FeatureBank
    removed: Tensor | None
    enrolled: Tensor | None
    enrolled_means: Tensor | None
    _roster: Roster | None = None

    def __init__(self) -> None:
        super().__init__()
        for name in self.OWN:
            self.register_buffer(name, None)
        self._gate, self._rooms = Gate(), Rooms()

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """C, ids of removed classes included."""

    @property
    @abstractmethod
    def feat_dim(self) -> int:
        """D."""

    @property
    def num_trained(self) -> int:
        """Ids below it are of trained classes, those from it on of enrolled ones."""
        return self.num_classes - (0 if self.enrolled is None else len(self.enrolled))

    @property
    def roster(self) -> Roster:
        """Who the classes are, by id. A head that was told no names calls them "class 0" and so on;
        set one to name them, as after a state dict was loaded.

        Raises:
            ValueError: when set, of other numbers of ids, or with other trained or removed ones.
        """
        if self._roster is None:
            counts = [] if self.enrolled is None else self.enrolled.tolist()
            images = [None] * self.num_trained + [round(n) for n in counts]
            gone = set(self._removed_ids())
            self._roster = Roster(
                ClassEntry(
                    f"class {id}",
                    TRAINED if id < self.num_trained else ENROLLED,
                    images[id],
                    alive=id not in gone,
                )
                for id in range(self.num_classes)
            )
        return self._roster

    @roster.setter
    def roster(self, value: Roster) -> None:
        if not self._is_of(value):
            raise ValueError(
                f"{type(self).__name__}.roster: expected {self.num_classes} ids, the first "
                f"{self.num_trained} trained, without {self._removed_ids()}, got {value}, without "
                f"{value.removed}"
            )
        self._roster = value

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While it lasts, no thread's `enroll`, `remove` or `rename` shows. So reads `predict`,
        and so can who asks a head twice for an answer: `outputs`, then `scores` or `roster`."""
        with self._gate.reading():
            yield

    def enroll(self, features: Tensor, names: Sequence[str]) -> Tensor:
        """Let classes join without training, from a few features of each.

        A name that is there, of a class that was enrolled, gets these features in addition: it then
        stands where all of its features, given at once, would have put it. New ones get the next
        ids. Other classes keep every number that they had. Costs no copy of the bank, but when its
        buffers double; parameters are other objects afterwards, which an optimizer does not know.

        Args:
            features: (N >= 1, D), floating, finite.
            names: (N,), of the class of each row.

        Returns:
            Ids (K,) int64 on the CPU, of the names in order of first appearance.

        Raises:
            ValueError: another shape or dtype, NaN or infinity, a name that is none or of a trained
                class, or a head that cannot do it, with the reason. The head stays as it was.
            RuntimeError: within `reading`.
        """
        with self._gate.changing():
            self._check_whole("enroll")
            tensors = self._class_tensors("enroll")
            names = [names] if isinstance(names, str) else list(names)
            self._check_features(features, names)
            unique = list(dict.fromkeys(names))
            place = {name: k for k, name in enumerate(unique)}
            group = torch.tensor([place[name] for name in names], device="cpu")
            images = group.bincount(minlength=len(unique))
            ids = torch.tensor(self.roster.ids_for(unique, images.tolist()), device="cpu")
            x, fresh = features.detach().cpu(), ids >= self.num_classes
            mean, count = self._together(x, group, images, ids)
            with torch.autocast(mean.device.type, enabled=False):
                rows = [*self._rows_of(mean, count), count, mean]
            values = [*map(_value, tensors), *self._own_values(mean.shape[1])]
            for value, row in zip(values, rows, strict=True):
                if not torch.isfinite(row.to(value.dtype)).all():
                    within = f"expected features whose rows stay within {value.dtype}"
                    raise ValueError(f"{type(self).__name__}.enroll: {within}")
            tensors += [ClassTensor(self, "enrolled"), ClassTensor(self, "enrolled_means")]
            new, again = fresh.to(mean.device), ids[~fresh].to(mean.device)
            grown = [
                self._rooms.grown((id(tensor.module), tensor.name), value, row[new])
                for tensor, value, row in zip(tensors, values, rows, strict=True)
            ]
            kept = self._keep(x, ids[group].to(mean.device))
            bank = self.bank.joined(x, group, ids, count.cpu() - images, self._rooms)
            first = self.num_trained
            with self._gate.swapping():
                for tensor, value, row in zip(tensors, grown, rows, strict=True):
                    own = tensor.module is self and tensor.name in self.OWN
                    value[again - first if own else again] = row[~new].to(value.dtype)
                    tensor.put(value)
                self._swapped(kept, bank)
                self.roster.add(unique, images.tolist())
            return ids

    def remove(self, ids: Iterable[int]) -> None:
        """Make classes no answer any more: their logits are -inf, and no memory recalls them.

        Enrolled ones at the end leave no trace: the head has the bits that it had before them, in
        tensors of its own, for which what is left is copied.
        Others keep their ids, empty, so that no later one shifts.

        Raises:
            ValueError: an id that is none, is given twice or was removed already, or all classes.
                The head stays as it was.
            RuntimeError: within `reading`.
        """
        with self._gate.changing():
            self._check_whole("remove")
            self._class_tensors("remove")
            self._rooms.drop_changed()
            gone = [int(id) for id in ids]
            left, first = self.roster.length_without(gone), self.num_trained
            holes = sorted(id for id in {*self._removed_ids(), *gone} if id < left)
            kept, bank = self._drop(gone), self.bank.without(gone)
            with self._gate.swapping():
                self._resize(left)
                self._set_removed(holes)
                self._swapped(kept, bank)
                self.roster.remove(gone)
            if any(id < first for id in gone):
                self._rooms.kept.clear()

    def rename(self, id: int, name: str) -> None:
        """Call a class otherwise.

        Raises:
            ValueError: an id of none that lives, or a name that is none or another class's.
            RuntimeError: within `reading`.
        """
        with self._gate.changing(), self._gate.swapping():
            self.roster.rename(id, name)

    # --- what a head says of itself -----------------------------------------------------------

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        """What has a row a class, in the order of `_rows_of`.

        Raises:
            ValueError: it cannot do `what`, and why.
        """
        raise ValueError(f"{type(self).__name__}.{what}: this head cannot change its classes")

    def _rows_of(self, mean: Tensor, count: Tensor) -> list[Tensor]:
        """Rows (K, ...) of classes with these means (K, D) float32 of `count` (K,) images."""
        raise NotImplementedError

    def _keep(self, features: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Buffers that hold features (N, D) of classes (N,) too, where a head keeps them itself."""
        return {}

    def _drop(self, ids: list[int]) -> dict[str, Tensor]:
        """Buffers without what they held of these classes."""
        return {}

    def _forget(self, ids: list[int]) -> None:
        """Make sure that nothing recalls classes that are holes."""

    def _make_rivals(self) -> Rivals:
        """Raises ValueError where the head has kept nothing of the trained classes."""
        raise NotImplementedError

    # --- beneath ------------------------------------------------------------------------------

    def without_removed(self, logits: Tensor) -> Tensor:
        """Logits (B, C), -inf for classes that are no answer any more."""
        if self.removed is None:
            return logits
        return logits.index_fill(1, self.removed.round().long(), -torch.inf)

    def rivals(self) -> Rivals:
        """`_make_rivals`, again only where something trained has changed."""
        made: Rivals = self._rooms.derived("rivals", self._trained_by(), self._make_rivals)
        return made

    def is_whole(self, state: Mapping[str, Any], prefix: str) -> bool:
        """Whether a state dict holds all of a head; no other changes which classes there are."""
        if f"{prefix}threshold" not in state:
            return False
        number, late = self._number_of(state, prefix), []
        if number != self.num_classes:
            late = [tensor.value for tensor in self._class_tensors("load_state_dict")]
        for name, own in [*self.named_parameters(), *self.named_buffers()]:
            grows = any(own is value for value in late)
            if grows or isinstance(own, nn.Parameter):
                shape = (number, *own.shape[1:]) if grows else own.shape
                if getattr(state.get(f"{prefix}{name}"), "shape", None) != shape:
                    return False
        return True

    def _number_of(self, state: Mapping[str, Any], prefix: str) -> int:
        joined = state.get(f"{prefix}enrolled")
        return self.num_trained + (0 if joined is None else len(joined))

    def make_room(self, state: Mapping[str, Any], prefix: str) -> None:
        """Before a state dict of a whole head is loaded: take as many classes as it has."""
        given = {name: state.get(f"{prefix}{name}") for name in self.OWN}
        self._resize(self._number_of(state, prefix))
        for name, value in given.items():
            room = None if value is None else torch.empty_like(value, device=self._device())
            setattr(self, name, room)

    def loaded(self) -> None:
        """After it: a roster of other classes has nothing to say any more."""
        if self._roster is not None and not self._is_of(self._roster):
            self._roster = None

    def _together(
        self, x: Tensor, group: Tensor, images: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means (K, D) float32 and numbers (K,) of all features, those enrolled before included."""
        total = x.new_zeros(len(ids), x.shape[1], dtype=torch.float64)
        total.index_add_(0, group, x.double())
        count, known = images.double(), ids < self.num_classes
        if known.any():
            assert self.enrolled is not None and self.enrolled_means is not None
            at = (ids[known] - self.num_trained).to(self.enrolled.device)
            before = self.enrolled[at].cpu().double()
            total[known] += self.enrolled_means[at].cpu().double() * before[:, None]
            count[known] += before
        mean = (total / count[:, None]).float()
        if not torch.isfinite(mean).all():
            raise ValueError(f"{type(self).__name__}.enroll: expected features within float32")
        device = self._device()
        return mean.to(device), count.to(device, _whole_dtype(device))

    def _own_values(self, width: int) -> list[Tensor]:
        if self.enrolled is not None and self.enrolled_means is not None:
            return [self.enrolled, self.enrolled_means]
        device = self._device()
        none = torch.zeros(0, dtype=_whole_dtype(device), device=device)
        return [none, torch.zeros(0, width, dtype=torch.float32, device=device)]

    def _trained_by(self) -> list[Tensor]:
        return [*self.parameters(), *(b for b in self.buffers() if b is not self.removed)]

    def _swapped(self, kept: Mapping[str, Tensor], bank: Changes) -> None:
        for name, value in kept.items():
            setattr(self, name, value)
        self.bank.take(bank)
        self._forget(self._removed_ids())
        self._rooms.kept.pop("there", None)
        self._rooms.still("rivals", self._trained_by())

    def _resize(self, number: int) -> None:
        """Without the last classes, or with room for more of which nothing is known yet."""
        if number == self.num_classes:
            return
        self._check_whole("load_state_dict")
        first = self.num_trained
        for tensor in self._class_tensors("load_state_dict"):
            value = _value(tensor)
            if number > len(value):
                more = value.new_zeros(number - len(value), *value.shape[1:])
                tensor.put(torch.cat([value, more]))
            else:
                tensor.put(value[:number].clone())  # a file of a part would hold the whole
        if self.enrolled is not None and self.enrolled_means is not None:
            late = max(number - first, 0)
            self.enrolled = self.enrolled[:late].clone() if late else None
            self.enrolled_means = self.enrolled_means[:late].clone() if late else None
        self._rooms.leave()

    def _set_removed(self, holes: list[int]) -> None:
        self.removed = None
        if holes:
            device, first = self._device(), self.num_trained
            self.removed = torch.tensor(holes, dtype=_whole_dtype(device), device=device)
            if self.enrolled is not None:
                self.enrolled[[id - first for id in holes if id >= first]] = 0

    def _removed_ids(self) -> list[int]:
        return [] if self.removed is None else [round(id) for id in self.removed.tolist()]

    def _is_of(self, roster: Roster) -> bool:
        return (
            len(roster) == self.num_classes
            and roster.num_trained == self.num_trained
            and roster.removed == self._removed_ids()
        )

    def _check_whole(self, what: str) -> None:
        if self.layout.shard is not None:
            raise ValueError(
                f"{type(self).__name__}.{what}: processes share its classes, whose number then "
                "stays; change them in one process, in a head with the state dict of this one"
            )

    def _device(self) -> torch.device:
        return next(self.buffers()).device

    def _check_features(self, features: Tensor, names: Sequence[str]) -> None:
        where = f"{type(self).__name__}.enroll"
        if not isinstance(features, Tensor) or not features.is_floating_point():
            got = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{where}: expected a tensor of floating features, got {got}")
        shape, width = tuple(features.shape), self.feat_dim
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            raise ValueError(f"{where}: expected features (N >= 1, {width}), got {shape}")
        if len(names) != len(features):
            raise ValueError(
                f"{where}: expected a name for each of {len(features)} rows, got {len(names)}"
            )
        wrong = (~torch.isfinite(features)).any(dim=1).nonzero()
        if len(wrong):
            raise ValueError(
                f"{where}: expected finite features, got NaN or infinity in row {int(wrong[0])}"
            )


def _value(tensor: ClassTensor) -> Tensor:
    assert tensor.value is not None
    return tensor.value.data


def _whole_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
