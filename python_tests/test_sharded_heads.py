"""A head whose classes several processes share gives what one process with all of them gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from pair import group, in_processes
from sharded_answers import (
    answer_alike,
    bytes_do_not_grow_with_the_classes,
    evaluated_alike,
    logits_in_parts,
    recalled_alike,
)
from torch.distributed.device_mesh import init_device_mesh

from oltr_ext import use_backend
from oltr_ext.nn import (
    CosineClassifier,
    FocalLoss,
    FSLwFHead,
    LinearHead,
    LWSHead,
    OLTRHead,
    OpenMaxHead,
    RangeLoss,
    shard_classes,
)

CLASSES = (3, 5, 10, 1001)
WIDTH = 6
LIMIT = 1e-12
EXACT = "donot_use_mm_for_euclid_dist"


def _rows(classes, number=11):
    x = torch.randn(number, WIDTH, dtype=torch.float64)
    return x, torch.arange(number) % min(classes, 4)


def _heads(classes, prior):
    """Names and heads in float64, each with all that a loss can have."""
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    made = {
        "oltr": OLTRHead(
            WIDTH,
            classes,
            class_prior=prior,
            label_smoothing=0.1,
            feature_loss_weight=0.3,
            memory_grad=True,
            margin=80.0,
            repel_weight=0.5,
        ),
        "fixed": OLTRHead(WIDTH, classes, learnable_memory=False, feature_loss_weight=0.0),
        "parts": OLTRHead(WIDTH, classes, without=("reachability",), class_prior=prior),
        "linear": LinearHead(WIDTH, classes, criterion=smooth),
        "prior": LinearHead(WIDTH, classes, class_prior=prior, metric=RangeLoss()),
        "focal": LinearHead(WIDTH, classes, criterion=FocalLoss()),
        "lws": LWSHead(WIDTH, classes, class_prior=prior),
    }
    for name, head in made.items():
        head.double()
        if isinstance(head, OLTRHead):
            start = torch.randn(3 * classes, WIDTH, dtype=torch.float64)
            labels = torch.arange(3 * classes) % classes
            # of these, classes at the end have no image
            kept = (labels < max(3, classes - 2)) if name == "parts" else labels >= 0
            head.init_from(None, start[kept], labels[kept], classifier="means")
        if hasattr(head, "prior_share"):
            head.prior_share.fill_(0.4)
    return made


def _close(got, want, what):
    assert got.shape == want.shape and got.dtype == want.dtype, (what, got.shape, want.shape)
    if want.numel():
        worst = (got - want).abs().max().item() / max(1.0, want.abs().max().item())
        assert worst <= LIMIT, (what, worst, got, want)


def _own(name, parameter, value, shard):
    """The part of a whole tensor that this process has."""
    return value[shard.start : shard.stop] if hasattr(parameter, "_local_tensor") else value


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _compare(name, head, mesh, sizes, batches):
    """Loss, all gradients, outputs and answers, of rows that lie here and there."""
    where = (name, head.num_classes, tuple(mesh.shape), batches)
    x, y = _rows(head.num_classes, sum(sizes))
    if name == "prior":  # ranges need pairs of a class
        y = torch.arange(len(y)) % 2
    whole, parted = head, copy.deepcopy(head)
    shard_classes(parted, mesh, batches=batches)
    rank, world = dist.get_rank(), dist.get_world_size()
    start = sum(sizes[:rank])
    here = slice(0, len(x)) if batches == "same" else slice(start, start + sizes[rank])
    one, own = x.clone().requires_grad_(), x[here].clone().requires_grad_()
    want, got = whole.loss(one, y), parted.loss(own, y[here])
    _close(got.detach(), want.detach(), where)
    want.backward()
    got.backward()
    # the mean over processes is the whole batch's gradient
    share = one.grad[here] * (1 if batches == "same" else world)
    _close(own.grad, share, (*where, "features"))
    for (n, p), q in zip(parted.named_parameters(), whole.parameters(), strict=True):
        assert p.shape == q.shape and (p.grad is None) == (q.grad is None), (*where, n)
        if p.grad is not None:
            _close(_local(p.grad), _own(n, p, q.grad, parted.layout.shard), (*where, n))
    out, ref = parted.outputs(x[here]), whole.outputs(x)
    for field, a, b in zip(out._fields, out, ref, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            _close(a.detach(), b[here].detach(), (*where, field))
    names = ("gen",)
    found, all_ = parted.scores(out, names), whole.scores(ref, names)
    assert found.keys() == all_.keys()
    for score in found:
        _close(found[score].detach(), all_[score][here].detach(), (*where, score))
    answer_alike(where, whole, parted, x, here)
    _trained_through_outputs(where, whole, parted, x, here, world if batches == "own" else 1)


def _trained_through_outputs(where, whole, parted, x, here, share):
    """A loss that is not the head's, of what the head gives."""
    for head, rows in ((whole, x), (parted, x[here])):
        head.zero_grad()
        value = (head(rows) * torch.linspace(0, 1, head.num_classes)).square().sum()
        (value * (share if head is parted else 1)).backward()
    for (n, p), q in zip(parted.named_parameters(), whole.parameters(), strict=True):
        if q.grad is not None:
            _close(_local(p.grad), _own(n, p, q.grad, parted.layout.shard), (*where, n, "outputs"))


def _exact(number):
    line = init_device_mesh("cpu", (number,))
    sizes = [4, 0, 6, 1][:number]
    for classes in CLASSES:
        torch.manual_seed(classes)
        prior = torch.rand(classes, dtype=torch.float64) + 0.1
        if classes > 4:
            prior[classes - 1] = 0  # impossible, and no row's
        heads = _heads(classes, prior)
        for backend in ("native", "reference"):
            with use_backend(backend):
                for name in heads if classes < 1001 else ("oltr", "linear"):
                    batches = "own" if backend == "native" else "same"
                    heads[name].zero_grad()
                    _compare(name, heads[name], line, sizes, batches)
                    if backend == "native" and name in ("oltr", "parts", "linear"):
                        evaluated_alike(heads[name], line)


def _plane():
    """Two groups of two, each with all classes: the mean of their losses, and its gradients."""
    plane = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "class"))
    torch.manual_seed(7)
    whole = _heads(5, torch.rand(5, dtype=torch.float64) + 0.1)["oltr"]
    x, y = _rows(5, 12)
    sizes, rank = (5, 1, 0, 6), dist.get_rank()  # the groups' rows are as many
    start = sum(sizes[:rank])
    here = slice(start, start + sizes[rank])
    parted = copy.deepcopy(whole)
    with torch.no_grad():  # of another seed in the other group: the first one's count
        parted.memory.centroids += float(rank // 2)
    shard_classes(parted, plane)
    one, own = x.clone().requires_grad_(), x[here].clone().requires_grad_()
    ((whole.loss(one[:6], y[:6]) + whole.loss(one[6:], y[6:])) / 2).backward()
    parted.loss(own, y[here]).backward()
    _close(own.grad, one.grad[here] * 4, "features")
    for (n, p), q in zip(parted.named_parameters(), whole.parameters(), strict=True):
        _close(_local(p.grad), _own(n, p, q.grad, parted.layout.shard), n)
    # means over all rows, of which each process has some, and one has none
    whole.init_from(None, x, y)
    parted.init_from_batches(None, [(x[here], y[here])] if sizes[rank] else [])
    _same_bank(parted, whole)
    whole.memory.update(x * 2, y)
    parted.memory.update(x[here] * 2, y[here])
    _same_bank(parted, whole)


def _own_rows():
    """Layers of a head, called by themselves with other rows in each process."""
    torch.manual_seed(9)
    whole = _heads(5, torch.rand(5, dtype=torch.float64) + 0.1)["parts"]  # some lack a centroid
    parted = shard_classes(copy.deepcopy(whole), init_device_mesh("cpu", (dist.get_world_size(),)))
    sizes, rank, weight = [2, 4, 0, 5][: dist.get_world_size()], dist.get_rank(), torch.randn(5)
    x, y = _rows(5, sum(sizes))
    here = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    calls = {
        "memory": lambda h, x: h.memory(x),
        "closest": lambda h, x: h.memory.closest(x, 2),
        "embed": lambda h, x: h.classifier.embed(x, h.memory.centroids),
        "logits": lambda h, x: (h.classifier.cosnorm_classifier(x),),
        "classifier": lambda h, x: h.classifier(x, h.memory.centroids)[:1],
        "infused": lambda h, x: h.classifier(x, h.memory.centroids)[1],
    }
    for name, call in calls.items():
        for got, want in zip(call(parted, x[here]), call(whole, x), strict=True):
            _close(got.detach(), want[here].detach(), name)
    want, got = (h.classifier.cosnorm_classifier for h in (whole, parted))
    _close(got.loss(x[here], y[here]).detach(), want.loss(x, y).detach(), "loss")
    for head, rows in ((whole, x), (parted, x[here])):  # as the mean over processes
        head.zero_grad()
        share = len(sizes) if head is parted else 1
        logits = head.classifier(rows, head.memory.centroids)[0]
        ((logits * weight).square().sum() * share).backward()
    for (n, p), q in zip(parted.named_parameters(), whole.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), n
        if q.grad is not None:
            _close(_local(p.grad), _own(n, p, q.grad, parted.layout.shard), n)
    _copied(parted, x[here], y[here])


def _copied(parted, x, y):
    """A copy, as for a moving average, has the same processes."""
    names = ["max_softmax", "nearest_distance"]
    average = torch.optim.swa_utils.AveragedModel(parted)
    average.update_parameters(parted)
    copies, want = (copy.deepcopy(parted), average.module), parted.best(x, 3, names)
    with torch.no_grad():
        for p in parted.parameters():
            _local(p).mul_(1.5)
    for other in copies:  # which have kept what they had
        assert other.layout is parted.layout and other.memory.places == parted.memory.places
        got = other.best(x, 3, names)
        assert torch.equal(got.logits, want.logits) and torch.equal(got.classes, want.classes)
        assert all(torch.equal(got.scores[name], want.scores[name]) for name in names)
        other.load_state_dict(parted.state_dict())
        _close(other.loss(x, y).detach(), parted.loss(x, y).detach(), "copied")


def _same_bank(parted, whole):
    state = whole.state_dict()
    for name, value in parted.state_dict().items():
        if name.startswith("memory.") or "hallucinator" in name:
            _close(_local(value), _own(name, value, state[name], parted.layout.shard), name)


def _memory():
    """What a memory does beside its gradients, and a margin by its spread."""
    torch.manual_seed(5)
    head, x = OLTRHead(WIDTH, 10).double(), torch.randn(30, WIDTH, dtype=torch.float64)
    y = torch.arange(30) % 7 + 1  # classes 0, 8 and 9 have no image
    head.init_from(None, x, y)
    with torch.no_grad():  # as near as another, here and there
        head.memory.centroids[[3, 5, 7]] = head.memory.centroids[2].clone()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parted = shard_classes(copy.deepcopy(head), mesh, batches="same")
    for name in ("forward", "closest"):
        want, got = (
            getattr(h.memory, name)(x, *([4] if name == "closest" else [])) for h in (head, parted)
        )
        _close(got.distance.detach(), want.distance.detach(), name)
        assert torch.equal(got.index, want.index), name
    far = torch.cdist(x, head.memory.centroids.detach(), compute_mode=EXACT)[:, 1:8]
    lowest = far.sort(dim=1, stable=True).indices[:, :4] + 1
    assert torch.equal(head.memory.closest(x, 4).index, lowest)
    _close(parted.recall(x).detach(), head.recall(x).detach(), "recall")
    fits = [h.centroid_loss.fit_margin(h.memory.centroids.detach()) for h in (head, parted)]
    assert fits[1] == pytest.approx(fits[0], rel=1e-12)
    # a class that is seen later takes part from then on
    for h in (head, parted):
        h.memory.update(x[:3] + 1, torch.tensor([0, 9, 9]))
    _same_bank(parted, head)
    assert torch.equal(parted.memory(x).index, head.memory(x).index)
    head.float()
    parted.float()
    x = x.float()
    parted.fit_bank([(x, y)], y.bincount(minlength=10))
    head.fit_bank([(x, y)], y.bincount(minlength=10))
    sums = "max_logit+relative_mahalanobis+nearest_feature"
    for h in (head, parted):
        h.bank.standardise(h.scores(h.outputs(x)))
        h.set_threshold(-1.0, sums)
    assert torch.equal(parted.predict(x)[0], head.predict(x)[0])
    linear = LinearHead(WIDTH, 10).double()
    apart = shard_classes(copy.deepcopy(linear), mesh)
    torch.testing.assert_close(apart.origin, linear.origin, rtol=1e-9, atol=1e-9)
    weight, bias = torch.randn(10, WIDTH).double(), torch.randn(10).double()
    for h in (linear, apart):
        h.start_at(weight, bias)
    x = x.double()
    _close(apart(x).detach(), linear(x).detach(), "start_at")


def _born_apart():
    """A head without numbers gets those that the whole one would have, and no more of them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for kind in (OLTRHead, LinearHead, LWSHead):
        torch.manual_seed(11)
        whole = kind(WIDTH, 1001)
        torch.manual_seed(11)
        parted = shard_classes(kind(WIDTH, 1001, device="meta"), mesh)
        shard, state = parted.layout.shard, whole.state_dict()
        for name, value in parted.state_dict().items():
            assert torch.equal(_local(value), _own(name, value, state[name], shard)), name
            assert value.shape == state[name].shape
        # a whole state dict loads, as a file has it
        other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
        other["score_index"] = state["score_index"]
        parted.load_state_dict(other)
        for name, value in parted.state_dict().items():
            assert torch.equal(_local(value), _own(name, value, other[name], shard)), name
        parted.load_state_dict(copy.deepcopy(parted).state_dict())
        parted.double().float()
        assert parted.num_classes == 1001 and parted.feat_dim == WIDTH


def _compiled():
    torch.manual_seed(4)
    x, y = torch.randn(8, WIDTH), torch.arange(8) % 7
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for kind in (OLTRHead, LinearHead):
        head = shard_classes(kind(WIDTH, 7), mesh, batches="same")
        if kind is OLTRHead:
            head.init_from(None, x, y)
        graph = torch.compile(head.loss, fullgraph=True, backend="aot_eager")
        grads = []
        for call in (head.loss, graph):
            head.zero_grad()
            loss = call(x, y)
            loss.backward()
            named = head.named_parameters()
            kept = {n: _local(p.grad).clone() for n, p in named if p.grad is not None}
            grads.append({"loss": loss.detach(), **kept})
        for name, want in grads[0].items():
            torch.testing.assert_close(grads[1][name], want, msg=f"{name}: {grads[1][name]} {want}")
    own = shard_classes(OLTRHead(WIDTH, 7), mesh)
    rows = slice(0, 2 * dist.get_rank())
    want = own.loss(x[rows], y[rows])
    torch.testing.assert_close(torch.compile(own.loss, backend="aot_eager")(x[rows], y[rows]), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = own.loss(x[rows], y[rows])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, want, rtol=3e-2, atol=3e-2)


def _refusals():
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for head, why in (
        (FSLwFHead(WIDTH, [30, 30, 3]), "FSLwFHead cannot share its classes: weights of classes"),
        (OpenMaxHead(WIDTH, 3), "OpenMaxHead cannot share its classes: each one's distances"),
        (torch.nn.Linear(3, 3), "expected a module that names what has a row a class .*Linear"),
        (CosineClassifier(WIDTH, 3), "expected a head, which gathers rows, got CosineClassifier"),
    ):
        with pytest.raises(ValueError, match=why):
            shard_classes(head, mesh)
    head = shard_classes(LinearHead(WIDTH, 3), mesh)
    with pytest.raises(ValueError, match="the classes of this LinearHead are shared already"):
        shard_classes(head, mesh)
    with pytest.raises(ValueError, match="expected batches own or same, got 'all'"):
        shard_classes(LinearHead(WIDTH, 3), mesh, batches="all")
    with pytest.raises(ValueError, match="enroll: processes share its classes"):
        head.enroll(torch.randn(1, WIDTH), ["new"])
    with pytest.raises(ValueError, match=r"expected linear\.weight of 3 classes, got 4"):
        head.load_state_dict(LinearHead(WIDTH, 4).state_dict())
    with pytest.raises(RuntimeError, match=r"every target in \[0, 3\), got 3 at row 1"):
        head.loss(torch.randn(2, WIDTH), torch.tensor([0, 3]))
    with torch.device("meta"):
        lost = OLTRHead(WIDTH, 3)
    with pytest.raises(ValueError, match='expected a head made with device="meta", got OLTRHead'):
        shard_classes(lost, mesh)
    square = init_device_mesh("cpu", (world, 1), mesh_dim_names=("a", "b"))
    with pytest.raises(ValueError, match=r'2-D with a dimension "class", got one of .*a.*b'):
        shard_classes(LinearHead(WIDTH, 3), square)
    layer = shard_classes(CosineClassifier(WIDTH, 3), mesh, batches="same")
    assert layer(torch.randn(2, WIDTH)).shape == (2, 3)


def _all(rank, folder, number):
    with group(rank, folder, number):
        _exact(number)
        _memory()
        _own_rows()
        _born_apart()
        logits_in_parts()
        recalled_alike(init_device_mesh("cpu", (number,)))
        bytes_do_not_grow_with_the_classes(init_device_mesh("cpu", (number,)))
        if number == 3:
            _compiled()
            _refusals()
        if number == 4:
            _plane()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_processes_together_give_what_one_has(number, tmp_path):
    in_processes(number, _all, tmp_path, number)
