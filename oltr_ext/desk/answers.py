"""What a run says of all images, asked again whenever its classes change; and how they change."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oltr_ext import ops
from oltr_ext._defaults import own_defaults
from oltr_ext.engine.enrolment import Enrolment
from oltr_ext.nn import Roster
from oltr_ext.serve.discover import grouped, known_classes, nearest_known
from oltr_ext.serve.discover_groups import measure
from oltr_ext.serve.enroll import as_one, enroll, remove
from oltr_ext.serve.trained import Trained

__all__ = ["Answers", "Change", "Plan", "held", "unheld"]

ALIKE = 1e-4
"""Features that differ by less of their length are of one image, embedded among others."""
Change = tuple[str, str | None, str | None]
"""An image, what it was taken for, and what it is taken for now; None is unknown."""


@dataclass
class Plan:
    """What is to be done for a model to have the classes that are wanted.

    Attributes:
        new, more: images by name of classes that it has not, and of those that it has.
        anew: names of classes that lose images: they go, and come again with those that stay.
        gone: names of classes that lose all.
    """

    new: dict[str, list[str]] = field(default_factory=dict)
    more: dict[str, list[str]] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.more or self.anew or self.gone)


class Answers:
    """A run and images, of which it keeps the features.

    Args:
        images: (N,) hashes. features: (N, D) float32, as the head gets them. pixels: (N, 16)
            hashes of what the network is given.

    Attributes:
        label: (N,) names, None for unknown. confidence: (N,).
        row: where each image is.
    """

    def __init__(
        self,
        trained: Trained,
        images: Sequence[str],
        features: NDArray[np.float32],
        pixels: NDArray[np.uint8],
    ) -> None:
        self.trained, self.images = trained, list(images)
        self.features, self.pixels = features, pixels
        self.row = {image: n for n, image in enumerate(images)}
        self._same: dict[bytes, list[str]] = {}
        self._of_rows: tuple[Enrolment, list[list[str]]] | None = None
        for image, feature in zip(images, features, strict=True):
            self._same.setdefault(feature.tobytes(), []).append(image)
        self.label: list[str | None] = [None] * len(images)
        self.confidence = np.zeros(len(images))
        self.ask()

    @own_defaults()
    @torch.no_grad()
    def ask(self) -> list[Change]:
        """Ask all again; what is another answer than before."""
        names, before = self.trained.names, self.label
        self.label = []
        self.confidence = np.empty(len(self.images))
        if len(self.images):
            features = torch.from_numpy(self.features).to(self.trained.device)
            label, confidence = self.trained.model.head.predict(features)
            self.label = [None if n < 0 else names[n] for n in label.tolist()]
            self.confidence = confidence.cpu().double().numpy()
        self.names, self.known = known_classes(self.trained)
        pairs = zip(self.images, before, self.label, strict=True)
        return [(image, old, new) for image, old, new in pairs if old != new]

    @property
    def trained_names(self) -> set[str]:
        roster = self.trained.roster
        return {roster[id].name for id in roster.living if id < roster.num_trained}

    def enrolled(self) -> dict[str, list[str]]:
        """By image the enrolled classes that its features are of, whoever enrolled them: several
        where images of the same pixels are."""
        names, found = self.trained.names, dict[str, list[str]]()
        owners = self.trained.enrolment.owner.tolist()
        for images, owner in zip(self._images_of_rows(), owners, strict=True):
            for image in images if owner >= 0 else ():
                held = found.setdefault(image, [])
                if names[owner] not in held:
                    held.append(names[owner])
        return found

    def group(self, images: Sequence[str]) -> dict[int, list[str]]:
        """Groups from 1 on among some of the images, as `discover` finds them; 0: the odd ones."""
        rows = [self.row[image] for image in images]
        made, _ = grouped(self.features[rows], self.pixels[rows], self.known)
        found: dict[int, list[str]] = {}
        for image, group in zip(images, made.group.tolist(), strict=True):
            found.setdefault(group, []).append(image)
        return found

    def in_two(self, images: Sequence[str]) -> list[str]:
        """The smaller of two parts of images by k-means at unit length."""
        from sklearn.cluster import KMeans
        from sklearn.preprocessing import normalize

        rows = normalize(self.features[[self.row[image] for image in images]].astype(np.float64))
        if len(np.unique(rows, axis=0)) < 2:
            return []
        label = KMeans(2, n_init=4, random_state=0).fit_predict(rows)
        smaller = int(label.sum() * 2 <= len(label))
        return [image for image, part in zip(images, label, strict=True) if part == smaller]

    def measured(
        self, groups: Mapping[int, Sequence[str]], asked: Iterable[int], nearest: int
    ) -> dict[int, tuple[NDArray[np.float64], list[tuple[str, float]]]]:
        """How sure each image of the groups asked for is, given all groups, and the known classes
        nearest to the group with their distances."""
        place = np.zeros(len(self.images), np.int64)
        number = {group: n for n, group in enumerate(groups, 1)}
        for group, images in groups.items():
            place[[self.row[image] for image in images]] = number[group]
        asked = [*asked]
        rows = [np.array([self.row[i] for i in groups[group]], np.int64) for group in asked]
        if not rows:
            return {}
        features = torch.from_numpy(self.features)
        sure, means = measure(features, place, self.known, np.concatenate(rows))
        near = nearest_known(
            means[[number[group] - 1 for group in asked]], self.names, self.known, nearest
        )
        ends = np.cumsum([len(part) for part in rows])[:-1]
        return dict(zip(asked, zip(np.split(sure, ends), near, strict=True), strict=True))

    def plan(self, wanted: Mapping[str, Sequence[str]], ours: Mapping[str, str]) -> Plan:
        """What it takes for the model to have the classes wanted.

        Args:
            wanted: images by name; those of trained classes stay out of the model.
            ours: images that came to the model from here, which may leave it again. Others leave
                a class only for another one that is wanted.
        """
        has, wanted = self.enrolled(), self._joining(wanted)
        as_what = {image: name for name, images in wanted.items() for image in images}
        losing = self._losing(as_what, ours)
        plan = Plan(anew=[], gone=[])
        for name, images in wanted.items():
            fresh = [image for image in images if name not in has.get(image, ())]
            if name not in self.trained.roster:
                plan.new[name] = fresh
            elif name in losing:
                plan.anew.append(name)
            elif fresh:
                plan.more[name] = fresh
        for name in sorted(losing.difference(plan.anew)):
            stays = self._rows(name, as_what, ours)
            (plan.anew if len(stays) else plan.gone).append(name)
        return plan

    @own_defaults()
    @torch.no_grad()
    def carry_out(
        self, plan: Plan, wanted: Mapping[str, Sequence[str]], ours: Mapping[str, str]
    ) -> None:
        """Change the classes in memory, as one change; or not at all.

        Raises:
            ValueError: a head that cannot take classes in. ChangedError: see `save`.
        """
        wanted = self._joining(wanted)
        as_what = {image: name for name, images in wanted.items() for image in images}
        given: list[torch.Tensor] = []
        names: list[str] = []

        def give(name: str, rows: torch.Tensor) -> None:
            given.append(rows)
            names.extend([name] * len(rows))

        # first, so that no new class gets the id that one of the last had
        for name in sorted(plan.anew, key=self.trained.roster.id_of):
            stays = self._rows(name, as_what, ours)
            there = {image for images in self._matched(stays) for image in images}
            rows = self._features([i for i in wanted.get(name, ()) if i not in there])
            give(name, torch.cat([stays, rows]) if len(stays) else rows)
        for name, images in {**plan.new, **plan.more}.items():
            give(name, self._features(images))
        with as_one(self.trained) if plan.anew or plan.gone else nullcontext():
            if plan.anew or plan.gone:
                remove(self.trained, [*plan.anew, *plan.gone])
            if names:
                rows = torch.cat(given).to(self.trained.device)
                labels = [f"image[{n}]" for n in range(len(rows))]
                enroll(self.trained, [(labels, rows)], names, more=True)

    def _joining(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        known = self.trained_names
        return {name: images for name, images in wanted.items() if name not in known}

    def _features(self, images: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(self.features[[self.row[image] for image in images]])

    def _losing(self, as_what: Mapping[str, str], ours: Mapping[str, str]) -> set[str]:
        """Names of enrolled classes that have features which none of their images keeps there."""
        names, owners = self.trained.names, self.trained.enrolment.owner.tolist()
        return {
            names[owner]
            for images, owner in zip(self._images_of_rows(), owners, strict=True)
            if owner >= 0 and not _stays(images, names[owner], as_what, ours)
        }

    def _rows(self, name: str, as_what: Mapping[str, str], ours: Mapping[str, str]) -> torch.Tensor:
        """Features that an enrolled class has and keeps."""
        kept, id = self.trained.enrolment, self.trained.roster.id_of(name)
        stays = [
            owner == id and _stays(images, name, as_what, ours)
            for images, owner in zip(self._images_of_rows(), kept.owner.tolist(), strict=True)
        ]
        return kept.features[torch.tensor(stays, dtype=torch.bool)]

    def _images_of_rows(self) -> list[list[str]]:
        """Which images each row of the enrolled features is of; made once for each enrolment."""
        kept = self.trained.enrolment
        if self._of_rows is None or self._of_rows[0] is not kept:
            self._of_rows = (kept, self._matched(kept.features))
        return self._of_rows[1]

    @own_defaults()
    @torch.no_grad()
    def _matched(self, rows: torch.Tensor) -> list[list[str]]:
        found = [self._same.get(row.tobytes(), []) for row in rows.numpy()]
        others = [n for n, images in enumerate(found) if not images]
        if others and len(self.images):
            asked = rows[others]
            near, index = ops.nearest_centroid(asked, torch.from_numpy(self.features))
            alike = near <= ALIKE * asked.norm(dim=1)
            for n, same, at in zip(others, alike.tolist(), index.tolist(), strict=True):
                if same:
                    found[n] = self._same[self.features[at].tobytes()]
        return found


def _stays(
    images: Sequence[str], name: str, as_what: Mapping[str, str], ours: Mapping[str, str]
) -> bool:
    """Whether a row of features stays in a class: of images that are not here, or one that it has
    as that class."""
    return not images or any(as_what.get(i, None if i in ours else name) == name for i in images)


def held(kept: Enrolment) -> tuple[str, bytes]:
    """A digest of the classes as they are, and what `unheld` makes them of."""
    living = kept.owner >= 0
    roster = json.dumps(kept.roster.to_json(), sort_keys=True)
    features, owner = kept.features[living].numpy(), kept.owner[living].numpy()
    digest = hashlib.blake2b(roster.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(features).data if features.size else b"")
    digest.update(np.ascontiguousarray(owner).data if owner.size else b"")
    out = io.BytesIO()
    np.savez(out, roster=roster, features=features, owner=owner)
    return digest.hexdigest(), out.getvalue()


def unheld(blob: bytes) -> Enrolment:
    with np.load(io.BytesIO(blob), allow_pickle=False) as found:
        roster: Any = Roster.from_json(json.loads(str(found["roster"])))
        return Enrolment(
            roster, torch.from_numpy(found["features"]), torch.from_numpy(found["owner"])
        )
