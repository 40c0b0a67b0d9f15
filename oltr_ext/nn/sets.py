"""Prediction sets: the classes that are plausible enough, of which the true one is one with
probability 1 - alpha. Split conformal prediction (Vovk et al. 2005), on log-probabilities.

Whatever the method, what it comes to is a log-probability for each class, from which on that class
is in the set. It is found on calibration rows, which were not trained on: their log-probabilities
of the true class, one number a row.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from oltr_ext.nn.parted import PartedLogits
from oltr_ext.nn.scores import CHUNK

SET_METHODS = ("marginal", "pas", "shots", "class", "interp")


def rank(rows: int, alpha: float) -> int:
    """Place, from the lowest, of the calibration score that decides: floor(alpha (n + 1)), the
    ceil((1 - alpha)(n + 1))-th from the highest. 0.1 is a tenth here, not the nearest binary
    number. 0: there are too few rows, and every class is in.

    Raises:
        ValueError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha in (0, 1), got {alpha}")
    return int(Fraction(repr(float(alpha))) * (rows + 1))


def true_log_probability(
    logits: Tensor | PartedLogits, target: Tensor, known: int | None = None
) -> Tensor:
    """(B,) float32 log-probability of the true class, of logits (B, C) and labels (B,); what is no
    number is -inf, the lowest, and so is that of an open row (-1).

    Args:
        known: of how many first classes the probabilities are, that of a further one being what it
            would be in their place; None: all. What joins a model then leaves these as they were.

    It is summed in float64, a part of the rows at a time. The logarithm tells probabilities apart
    that are 1 in float32.
    """
    if isinstance(logits, PartedLogits):
        true = logits.at(target.clamp_min(0)) - logits.log_known
        return _number(torch.where(target < 0, -torch.inf, true))
    parts = []
    for z, y in _parts(logits, target):
        true = z.gather(1, y.clamp_min(0)[:, None])[:, 0] - z[:, :known].logsumexp(1)
        parts.append(torch.where(y < 0, -torch.inf, true))
    return _number(torch.cat(parts)) if parts else logits.new_empty(0, dtype=torch.float32)


def set_thresholds(
    method: str,
    alpha: float,
    log_prob: Tensor,
    target: Tensor,
    classes: int,
    *,
    groups: Tensor | None = None,
    prevalence: Tensor | None = None,
    weight: float = 0.5,
) -> Tensor:
    """The log-probability from which on each class is in the set.

    Args:
        method: ``marginal``: one for all classes, the least that covers (LAC: Sadinle et al., JASA
            2019). ``pas``: one for all, of p(y|x) / p(y) (prevalence-adjusted softmax, Ding et al.,
            arXiv 2507.06867), the smallest sets for coverage that weighs classes alike. ``class``:
            one for each class by its own rows (Mondrian; Vovk et al.); a class of fewer than
            1/alpha - 1 rows has none, and is in every set. ``shots``: one for each group of
            classes, likewise; a group of too few rows joins the next. ``interp``: ``weight`` times
            the probability of ``class`` (0 where it has none) and the rest that of ``marginal``
            (Interp-Q, of the paper of ``pas``).
        alpha: in (0, 1).
        log_prob, target: (n,) of the calibration rows, see `true_log_probability`.
        classes: C.
        groups: (C,) int64 from 0 in the order in which a small one joins the next, the last the one
            before it; for ``shots``.
        prevalence: (C,) p(y), for ``pas``.

    Returns:
        (C,) float32 on the device of ``log_prob``; -inf: always in.

    Raises:
        ValueError: another method, alpha or weight; a label out of range; ``groups`` or
            ``prevalence`` missing where the method needs them.
    """
    score, target = _number(log_prob).double().cpu(), target.cpu().long()
    if method not in SET_METHODS:
        raise ValueError(
            f"set_thresholds: expected one of {', '.join(SET_METHODS)}, got {method!r}"
        )
    if score.shape != target.shape or score.dim() != 1:
        raise ValueError(
            f"set_thresholds: expected log_prob and target (n,), got {tuple(score.shape)} and "
            f"{tuple(target.shape)}"
        )
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(f"set_thresholds: expected labels in [0, {classes})")
    one = torch.zeros_like(target)
    if method == "marginal":
        found = _lowest(score, one, 1, alpha).expand(classes)
    elif method == "pas":
        if prevalence is None:
            raise ValueError("set_thresholds: pas needs prevalence (C,)")
        if prevalence.shape != (classes,) or not bool((prevalence > 0).all()):
            raise ValueError(f"set_thresholds: expected prevalence ({classes},) above 0")
        shift = prevalence.cpu().double().log()
        found = _lowest(score - shift[target], one, 1, alpha) + shift
    elif method == "class":
        found = _lowest(score, target, classes, alpha)
    elif method == "shots":
        if groups is None:
            raise ValueError("set_thresholds: shots needs groups (C,)")
        if groups.shape != (classes,) or int(groups.min()) < 0:
            raise ValueError(f"set_thresholds: expected groups ({classes},) from 0")
        joined = _joined(groups.cpu(), target, alpha)
        found = _lowest(score, joined[target], int(joined.max()) + 1, alpha)[joined]
    else:
        if not 0 <= weight <= 1:
            raise ValueError(f"set_thresholds: expected weight in [0, 1], got {weight}")
        own, all_ = _lowest(score, target, classes, alpha), _lowest(score, one, 1, alpha)
        mixed = (weight * own.exp() + (1 - weight) * all_.exp()).log()
        found = torch.where(own == all_, own, mixed)
    # Ties are between numbers of float32: rounded to the nearest, a threshold is such again
    return found.float().to(log_prob.device)


def set_members(
    logits: Tensor | PartedLogits, thresholds: Tensor, known: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sets of logits (B, C) under thresholds (C,), likeliest class first.

    Args:
        known: see `true_log_probability`, for what is in; the log-probabilities are of all.

    Returns:
        sizes (B,) int64; classes (sum of sizes,) int64, row after row; their log-probabilities,
        float32. Of B x C nothing but the logits exists whole.
    """
    if isinstance(logits, PartedLogits):
        return _parted_members(logits, thresholds)
    sizes, classes, values = [], [], []
    for z, _ in _parts(logits, logits):
        inside = _number(z - z[:, :known].logsumexp(1, keepdim=True)) >= thresholds
        log_prob = _number(z - z.logsumexp(1, keepdim=True))
        row, column = inside.nonzero(as_tuple=True)
        value = log_prob[row, column]
        order = value.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        sizes.append(inside.sum(1))
        classes.append(column[order])
        values.append(value[order])
    if not sizes:
        none = torch.empty(0, dtype=torch.int64, device=logits.device)
        return none, none, none.float()
    return torch.cat(sizes), torch.cat(classes), torch.cat(values)


def _parted_members(logits: PartedLogits, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.int64, device=logits.device)
    rows, columns, values = [none], [none], [none.float()]
    known = logits.log_known[:, None]
    total = logits.log_total[:, None]
    with logits.blocks() as blocks:
        for start, z in blocks:
            inside = _number(z - known) >= thresholds[start : start + z.shape[1]]
            row, column = inside.nonzero(as_tuple=True)
            rows.append(row)
            columns.append(column + start)
            values.append(_number(z - total)[row, column])
    row, column, value = logits.joined(torch.cat(rows), torch.cat(columns), torch.cat(values))
    order = column.argsort(stable=True)
    order = order[value[order].argsort(descending=True, stable=True)]
    order = order[row[order].argsort(stable=True)]
    return row.bincount(minlength=len(logits)), column[order], value[order]


def set_sizes(
    logits: Tensor | PartedLogits, thresholds: Tensor, known: int | None = None
) -> Tensor:
    """(B, M) int64, how many classes are in the sets under M thresholds (M, C) each; as
    `set_members`."""
    shape = (len(logits), len(thresholds))
    if 0 in shape:
        return torch.empty(shape, dtype=torch.int64, device=logits.device)
    if isinstance(logits, PartedLogits):
        counts, total = thresholds.new_zeros(shape, dtype=torch.int64), logits.log_known[:, None]
        with logits.blocks() as blocks:
            for start, z in blocks:
                log_prob, here = _number(z - total), slice(start, start + z.shape[1])
                counts += torch.stack([(log_prob >= t[here]).sum(1) for t in thresholds], 1)
        return logits.summed(counts)
    found = []
    for z, _ in _parts(logits, logits):
        log_prob = _number(z - z[:, :known].logsumexp(1, keepdim=True))
        found.append(torch.stack([(log_prob >= each).sum(1) for each in thresholds], 1))
    return torch.cat(found)


def _parts(logits: Tensor, other: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows of both, a few at a time, the logits in float64 (on MPS in float32)."""
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    rows = max(1, CHUNK // max(1, logits.shape[1]))
    pairs = zip(logits.split(rows), other.split(rows), strict=True)
    return [(z.to(dtype), y) for z, y in pairs if len(z)]


def _number(log_prob: Tensor) -> Tensor:
    """float32, with -inf for what is none."""
    return log_prob.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _lowest(score: Tensor, group: Tensor, groups: int, alpha: float) -> Tensor:
    """(G,) the lowest score that is kept in each group; -inf where it has too few rows."""
    order = score.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    rows = group.bincount(minlength=groups)
    places = {n: rank(n, alpha) for n in rows.unique().tolist()}
    place = torch.tensor([places[n] for n in rows.tolist()], device=rows.device)
    at = (rows.cumsum(0) - rows + place - 1).clamp(0, max(len(score) - 1, 0))
    if len(score) == 0:
        return score.new_full((groups,), -torch.inf, dtype=torch.float64)
    return torch.where(place > 0, score[order][at], -torch.inf)


def _joined(groups: Tensor, target: Tensor, alpha: float) -> Tensor:
    """(C,) groups again, those of too few calibration rows joined to the next."""
    number = int(groups.max()) + 1
    rows = groups[target].bincount(minlength=number).tolist()
    name, place = list(range(number)), 0
    for g in range(number):
        name[g], rows[place] = place, rows[g] if place == g else rows[place] + rows[g]
        if rank(rows[place], alpha) > 0:
            place = g + 1
    if place < number and place > 0:  # the last of them are still too few
        name = [min(n, max(m for m in name if m < place)) for n in name]
    return torch.tensor(name, device=groups.device)[groups]
