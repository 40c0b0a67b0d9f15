"""All of OLTR behind a feature."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.checks import check_in_memory, check_own
from oltr_ext.nn.classifiers import MetaEmbeddingClassifier
from oltr_ext.nn.enroll import ClassTensor
from oltr_ext.nn.heads import Gather, HeadOutput, PriorHead, alone
from oltr_ext.nn.losses import DiscCentroidsLoss
from oltr_ext.nn.memory import CentroidMemory
from oltr_ext.nn.parted import PartedLogits, SharedLogits, strongest_of
from oltr_ext.nn.rivals import RIVALS, Rivals, spaced
from oltr_ext.nn.scores import SCORES, all_scores
from oltr_ext.nn.streamed import StreamedLogits, strongest
from oltr_ext.ops import MetaEmbeddingDetails, StreamedBank
from oltr_ext.reference._common import wide

ROWS = 256
"""Rows that share a pass over streamed banks; more hold more of a block's logits."""


class OLTRHead(PriorHead):
    """All of OLTR behind a feature: memory, meta-embedding, cosine classifier, both losses.

    Args:
        feat_dim: D.
        num_classes: C.
        feature_loss_weight: of the centroid loss against the cross-entropy.
        class_prior: class frequencies (C,) whose logarithm is added to the logits in training; see
            `PriorHead` for how it is expected again afterwards.
        label_smoothing: of the cross-entropy.
        reachability_scale: s of r = s / d.
        logit_scale: of the cosine classifier.
        learnable_memory: whether the centroids are trained, where one of the losses reaches them.
        memory_grad: whether the classifier's loss reaches the centroids too.
        margin, repel_weight, compat: of the centroid loss.
        without: parts of the meta-embedding to leave out; see `MetaEmbedding`.
        device: of what has a row a class, and of the selector.

    Raises:
        ValueError: no class or no feature, a prior that is none, an unknown ``compat`` or part.
    """

    def __init__(
        self,
        feat_dim: int,
        num_classes: int,
        *,
        feature_loss_weight: float = 0.01,
        class_prior: Tensor | None = None,
        label_smoothing: float = 0.0,
        reachability_scale: float = 10.0,
        logit_scale: float = 16.0,
        learnable_memory: bool = True,
        memory_grad: bool = False,
        margin: float = 10.0,
        repel_weight: float = 0.01,
        compat: str = "fixed",
        without: Iterable[str] = (),
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(class_prior, num_classes)
        self.feature_loss_weight = feature_loss_weight
        self.label_smoothing = label_smoothing
        self.memory = CentroidMemory(
            num_classes, feat_dim, learnable=learnable_memory, device=device
        )
        self.classifier = MetaEmbeddingClassifier(
            feat_dim,
            num_classes,
            logit_scale=logit_scale,
            scale=reachability_scale,
            memory_grad=memory_grad,
            without=without,
            device=device,
        )
        self.centroid_loss = DiscCentroidsLoss(margin, repel_weight, compat)
        by_classifier = memory_grad and not {"memory", "reachability"} <= {*self.classifier.without}
        if learnable_memory and not (feature_loss_weight or by_classifier):
            self.memory.requires_grad_(False)

    @property
    def num_classes(self) -> int:
        return self.memory.num_classes

    @property
    def feat_dim(self) -> int:
        return self.memory.feat_dim

    def outputs(self, features: Tensor) -> HeadOutput:
        out: HeadOutput = self.layout.each(self._outputs, features)
        return out._replace(features=features)

    def _outputs(self, features: Tensor, *, whole: bool = True) -> HeadOutput:
        parts = self._embed(features)
        cosine = self.classifier.cosnorm_classifier
        if self.streamed:
            logits: Tensor | PartedLogits = StreamedLogits(
                parts.embedding,
                cast(StreamedBank, cosine.weight),
                cosine.scale,
                self._shift(),
                self.num_trained,
            )
        else:
            logits = self.expected(cosine.columns(parts.embedding), whole=whole)
        return HeadOutput(
            logits,
            parts.distance,
            parts.nearest,
            parts.embedding,
            parts.memory_feature,
            parts.selector,
        )

    def pieces(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(ROWS) if self.streamed else super().pieces(rows)

    @property
    def streamed(self) -> bool:
        """Whether its banks pass by in blocks; see `oltr_ext.nn.streamed.stream`."""
        return isinstance(self.memory.centroids, StreamedBank)

    def _shift(self) -> Tensor | None:
        """(C,) what `expected` adds to logits; None: nothing."""
        if self.class_prior is None and self.removed is None:
            return None
        zero = self.threshold.new_zeros(1, self.num_classes, dtype=torch.float32)
        return cast(Tensor, self.expected(zero))[0]

    def _embed(self, features: Tensor) -> MetaEmbeddingDetails:
        """Where classes lack, what is there is copied once, not at each call, but with gradients
        and in a compiled graph."""
        layer, present = self.classifier, self.memory.present
        at_each_call = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if present is None or self.streamed or at_each_call:
            return self._embed_anew(features)
        bank = [self.memory.centroids, layer.fc_hallucinator.weight, layer.fc_hallucinator.bias]
        tensors = [*map(self.layout.raw, bank), present]
        made = self._rooms.derived("there", tensors, lambda: self.memory.there(*bank))
        parts = layer.embed_by(features, *made, shard=self.memory.places)
        return parts._replace(nearest=self.memory.classes(parts.nearest))

    def _embed_anew(self, features: Tensor) -> MetaEmbeddingDetails:
        memory, keys = self.memory, self.classifier.fc_hallucinator
        bank = memory.there(memory.centroids, keys.weight, keys.bias)
        parts = self.classifier.embed_by(features, *bank, shard=memory.places)
        return parts._replace(nearest=memory.classes(parts.nearest))

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        keys = self.classifier.fc_hallucinator
        check_in_memory(f"OLTRHead.{what}", self.memory.centroids)
        if what != "load_state_dict" and not self.memory.counts.any():
            raise ValueError(
                f"OLTRHead.{what}: expected a memory that has counted its classes' images "
                "(init_from), got one that says of none whether it is there"
            )
        return [
            ClassTensor(self.memory, "centroids"),
            ClassTensor(self.memory, "counts"),
            ClassTensor(keys, "weight"),
            ClassTensor(keys, "bias"),
            ClassTensor(self.classifier.cosnorm_classifier, "weight"),
            *([] if self.class_prior is None else [ClassTensor(self, "class_prior")]),
        ]

    def _rows_of(self, mean: Tensor, count: Tensor) -> list[Tensor]:
        rivals, each = self.rivals(), len(mean)
        typical = rivals.typical
        return [
            mean,
            count,
            F.normalize(mean - typical["centre"], dim=1) * typical["key"],
            typical["bias"].expand(each),
            rivals.direction(mean) * typical["row"],
            *([] if self.class_prior is None else [typical["prior"].expand(each)]),
        ]

    def _make_rivals(self) -> Rivals:
        layer, there = self.classifier, self.memory.counts[: self.num_trained].nonzero()[:, 0]
        if len(there) == 0:
            raise ValueError(
                f"{type(self).__name__}.enroll: expected a trained class to set new ones against, "
                "got none: all were removed"
            )
        kept = spaced(there, RIVALS)
        keys, rows = layer.fc_hallucinator, layer.cosnorm_classifier
        # at its own centroid a class's embedding is longer than float16 holds
        bank = [wide(part[kept]) for part in (self.memory.centroids, keys.weight, keys.bias)]
        weight = wide(rows.weight[kept])
        # the classes that these stand for have their share of the exponentials
        more = math.log(len(there) / len(kept))

        def see(x: Tensor) -> tuple[Tensor, Tensor]:
            v = layer.embed_by(x.to(weight.dtype), *bank).embedding
            logits = ops.cosine_logits(v, weight, scale=rows.scale).float()
            v = v.float()
            return v / (1 + v.norm(dim=1, keepdim=True)), logits.logsumexp(dim=1) + more

        inputs, total = see(bank[0])
        typical = {
            "centre": bank[0].float().mean(dim=0),
            "key": bank[1].float().norm(dim=1).median(),
            "bias": bank[2].median(),
            "row": weight.float().norm(dim=1).median(),
        }
        if self.class_prior is not None:
            # how many images a class came with says nothing of how frequent it is
            typical["prior"] = self.class_prior[kept].median()
        return Rivals(inputs, total, rows.scale, see, typical)

    def _forget(self, ids: list[int]) -> None:
        self.memory.counts[ids] = 0
        self.memory.refresh()

    def recall(self, features: Tensor) -> Tensor:
        """(B, C) how much of each class the memory recalls: the attention itself, for reports.

        Raises:
            ValueError: streamed banks, of which `most_recalled` tells the largest.
        """
        check_in_memory("OLTRHead.recall", self.classifier.fc_hallucinator.weight)
        (match,) = self.layout.each(lambda x: (self.layout.whole(self._match(x)),), features)
        return torch.softmax(match, dim=1)

    def _match(self, features: Tensor) -> Tensor:
        """Attention logits of this process's classes, -inf of those without a centroid."""
        match, gone = self.layout.linear(features, self.classifier.fc_hallucinator), self._gone()
        return match if gone is None else match.masked_fill(gone, -torch.inf)

    def _gone(self) -> Tensor | None:
        """(n,) bool, which of this process's classes lack a centroid; None: none."""
        return None if self.memory.present is None else self.layout.raw(self.memory.counts) == 0

    def most_recalled(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Of `recall` the largest shares (B, min(count, C)) and their classes, of equals the lower:
        in memory, streamed or shared alike. A class without a centroid has the share 0."""
        layer, shard = self.classifier.fc_hallucinator, self.layout.shard

        def found(x: Tensor) -> tuple[Tensor, Tensor]:
            if self.streamed:
                keys = cast(StreamedBank, layer.weight)
                return strongest(x, keys, layer.bias, self._gone(), count)
            match = self._match(x)
            if shard is None:
                classes = strongest_of(match, count)[1]
                return torch.softmax(match, dim=1).gather(1, classes), classes
            parts = SharedLogits(match, shard)
            largest, classes = parts.largest(count)
            return (largest - parts.log_total[:, None]).exp().to(match.dtype), classes

        share, which = self.layout.each(found, features)
        return share, which

    def own_scores(self, out: HeadOutput, names: Iterable[str] = SCORES) -> dict[str, Tensor]:
        scale = self.classifier.scale
        return all_scores(out.logits, out.distance, out.unknown, names=names, scale=scale)

    def loss(self, features: Tensor, target: Tensor, *, gather: Gather = alone) -> Tensor:
        """Cross-entropy + feature_loss_weight * centroid loss; neither holds B x C.

        Args:
            features: (B, D).
            target: (B,) int64 in [0, C).
            gather: for the centroid loss, whose repel term clamps a mean over the batch. It is
                O((B + C) D), so gathering costs little; the cross-entropy, O(B C D), stays local.
        """
        x, y = self.layout.rows(features, target)
        parts = self._embed_anew(x)
        prior = None if self.class_prior is None else self.layout.raw(self.class_prior)
        loss = self.classifier.cosnorm_classifier.loss_of_all(
            parts.embedding,
            y,
            class_prior=prior,
            label_smoothing=self.label_smoothing,
        )
        if self.feature_loss_weight == 0:
            return loss
        rows = (x, y) if gather is alone else gather(features, target)
        bank = self.layout.own(self.memory.centroids)
        pull = self.centroid_loss(*rows, bank, self.layout.shard)
        return loss + self.feature_loss_weight * pull

    @torch.no_grad()
    def init_from(
        self,
        linear: nn.Linear | None,
        features: Tensor,
        target: Tensor,
        *,
        classifier: str = "random",
        selector: str = "random",
    ) -> None:
        """The start of stage 2, from features (N, D) of the whole training set and labels (N,).

        See :meth:`init_from_batches`, which takes them piece by piece.
        """
        self.init_from_batches(
            linear, [(features, target)], classifier=classifier, selector=selector
        )

    @torch.no_grad()
    def init_from_batches(
        self,
        linear: nn.Linear | None,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        classifier: str = "random",
        selector: str = "random",
    ) -> None:
        """The start of stage 2, in one pass and in memory that does not grow with the data.

        Args:
            linear: stage 1's classifier, from which the attention starts. None: keys are the class
                means themselves.
            batches: features (B, D) and labels (B,), together the whole training set as stage 2
                will see it.
            classifier: cosine classifier ``"random"`` (the paper's) or at the class ``"means"``.
            selector: ``"random"`` (the paper's) or ``"zero"``: the embedding then starts as the
                feature itself, and the gate opens as far as it helps.

        Raises:
            ValueError: an unknown choice, a linear layer of another shape, or a layer to be written
                that is parametrized, pruned or streamed.
        """
        for name, value, choices in (
            ("classifier", classifier, ("random", "means")),
            ("selector", selector, ("random", "zero")),
        ):
            if value not in choices:
                raise ValueError(
                    f"OLTRHead.init_from: expected {name} to be one of {', '.join(choices)}, "
                    f"got {value!r}"
                )
        keys = self.classifier.fc_hallucinator
        check_own("OLTRHead.init_from", keys, "weight", "bias")
        if classifier == "means":
            check_own("OLTRHead.init_from", self.classifier.cosnorm_classifier, "weight")
        if selector == "zero":
            check_own("OLTRHead.init_from", self.classifier.fc_selector, "weight", "bias")
        if linear is not None and linear.weight.shape != keys.weight.shape:
            raise ValueError(
                f"OLTRHead.init_from: expected a linear layer of shape "
                f"{tuple(keys.weight.shape)}, got {tuple(linear.weight.shape)}"
            )
        self.memory.initialise_from(batches, lambda x: x)
        layout = self.layout
        start = self.memory.centroids if linear is None else linear.weight
        layout.raw(keys.weight).copy_(layout.cut(start))
        if linear is None or linear.bias is None:
            layout.raw(keys.bias).zero_()
        else:
            layout.raw(keys.bias).copy_(layout.cut(linear.bias))
        if classifier == "means":
            self.classifier.cosnorm_classifier.start_at(self.memory.centroids)
        if selector == "zero":
            self.classifier.fc_selector.weight.zero_()
            self.classifier.fc_selector.bias.zero_()

    def extra_repr(self) -> str:
        return f"feature_loss_weight={self.feature_loss_weight}, score={self.score!r}"
