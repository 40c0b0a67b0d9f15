"""Heads among what torch offers: the meta device, inference mode, quantisation, processes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from head_cases import heads_of_every_kind
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from oltr_ext import use_backend
from oltr_ext.models import OLTRModel, build_backbone
from oltr_ext.nn import FSLwFHead, LinearHead, LWSHead, ModulatedAttention, OLTRHead, OpenMaxHead
from oltr_ext.nn.classifiers import PARTS

PRIOR = [7.0, 3, 2, 0]
MAKERS = {
    "linear": lambda: LinearHead(6, 4, class_prior=PRIOR),
    "lws": lambda: LWSHead(6, 4),
    "oltr": lambda: OLTRHead(6, 4, class_prior=PRIOR),
    "fslwf": lambda: FSLwFHead(6, [25, 25, 5, 5]),
    "openmax": lambda: OpenMaxHead(6, 4),
}


def trained(kind):
    """A head of the kind, features (B, 6) and labels; an OLTR memory that lacks a class."""
    head, x, y = heads_of_every_kind()[["linear", "lws", "oltr", "fslwf", "openmax"].index(kind)]
    if kind == "oltr":
        head.init_from(None, x, y)
        assert head.memory.present.tolist() == [0, 1]
    head.set_threshold(0.25, "energy")
    return head, x, y


def materialised(meta, state, how):
    if how == "assign":
        meta.load_state_dict(copy.deepcopy(state), assign=True)
        return meta
    torch.use_deterministic_algorithms(True)  # empty memory holds NaN and the largest integers
    try:
        whole = meta.to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_head_made_on_the_meta_device(kind, how):
    head, x, y = trained(kind)
    with torch.device("meta"):
        meta = MAKERS[kind]()
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers()))
    assert "meta" not in repr(meta) and meta.num_classes == 4
    got = materialised(meta, head.state_dict(), how)
    assert got.score == "energy" and got.threshold == 0.25
    want, out = head.outputs(x), got.outputs(x)
    for name, value in want._asdict().items():
        assert value is None or torch.equal(getattr(out, name), value), name
    torch.manual_seed(0)
    loss = head.loss(x, y)
    torch.manual_seed(0)
    assert torch.equal(got.loss(x, y), loss)
    got.loss(x, y).backward()


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_head_moved_to_the_meta_device(kind, how):
    head, x, _ = trained(kind)
    state = copy.deepcopy(head.state_dict())
    want = head.predict(x)
    meta = head.to("meta")
    with pytest.warns(UserWarning, match="no-op"):
        meta.load_state_dict(state)  # torch's own: nothing is there to copy into
    got = materialised(meta, state, how)
    assert all(torch.equal(a, b) for a, b in zip(got.predict(x), want, strict=True))


def test_a_prior_is_still_checked_where_it_can_be():
    with torch.device("meta"), pytest.raises(ValueError, match="class_prior: expected shape"):
        OLTRHead(6, 4, class_prior=[1.0, 2])


@pytest.mark.parametrize("how", ["assign", "to_empty"])
@pytest.mark.parametrize("name", ["small_cnn", "torchvision:resnet18", "torchvision:googlenet"])
def test_a_model_made_on_the_meta_device(name, how):
    """Grey images, whose mean and std are no part of the state dict."""

    def make():
        backbone = build_backbone(name, in_channels=1)
        width, size = backbone.feature_dim, backbone.eval()(torch.zeros(1, 1, 64, 64)).shape[2:]
        head = OLTRHead(width, 5, class_prior=[5, 4, 3, 2, 1])
        model = OLTRModel(backbone, head, ModulatedAttention(width, *size))
        return model.freeze(["backbone"]).eval()

    model, images = make(), torch.rand(2, 1, 64, 64)
    with torch.device("meta"):
        meta = make()
    got = materialised(meta, model.state_dict(), how)
    with torch.no_grad():
        torch.testing.assert_close(got(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("step", ["initialise", "update", "load", "load_state_dict"])
def test_a_memory_made_in_inference_mode_can_be_trained(step, tmp_path):
    """Backward saves no tensor made in that mode, as the list of classes present would be."""
    x, y = torch.randn(12, 6), torch.arange(12) % 3  # of class 3 there is none
    other = OLTRHead(6, 4)
    other.memory.initialise(x, y)
    other.memory.save(tmp_path / "memory.safetensors")
    head = OLTRHead(6, 4, memory_grad=True)
    with torch.inference_mode():
        if step == "load":
            head.memory.load(tmp_path / "memory.safetensors")
        elif step == "load_state_dict":
            head.load_state_dict(other.state_dict())
        else:
            getattr(head.memory, step)(x, y)
        head.predict(x)
    assert head.memory.present.tolist() == [0, 1, 2]
    head.loss(x, y).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_what_fslwf_keeps_of_inference_mode_is_not_trained_on():
    head, x, y = trained("fslwf")
    head.eval()
    with torch.inference_mode():
        head.outputs(x)
    assert head._kept is not None
    head.outputs(x).logits[:, head.base].sum().backward()
    head.train().loss(x, y).backward()


def copied(head, other):
    for a, b in zip(other.state_dict().values(), head.state_dict().values(), strict=True):
        a.copy_(b)
    return other


def averaged(**options):
    def average(head, other):
        average = AveragedModel(other, **options)
        for _ in range(4):
            average.update_parameters(head)
        return average.module

    return average


WAYS = {
    "copied": copied,
    "averaged": averaged(),
    "buffers too": averaged(use_buffers=True),
    # whose integers torch cuts off: 3 becomes 2
    "moving": averaged(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "moving singly": averaged(use_buffers=True, avg_fn=get_ema_avg_fn(0.9)),
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_head_that_is_written_tensor_by_tensor(kind, how):
    """As processes get one's weights, and averages their model's: what it derives is made anew."""
    head, x, _ = trained(kind)
    head.set_threshold(0.25, "nearest_distance")  # the fourth
    other = MAKERS[kind]().eval()
    with torch.no_grad():
        other.predict(x)  # derives all there is
        other = WAYS[how](head, other)
        assert other.score == "nearest_distance"
        head.set_threshold(0.25, "energy"), other.set_threshold(0.25, "energy")  # all have it
        for name, value in head.eval().outputs(x)._asdict().items():
            if value is not None:
                got = getattr(other.outputs(x), name)
                torch.testing.assert_close(got, value, rtol=1e-5, atol=2e-6)
        assert torch.equal(other.predict(x)[0], head.predict(x)[0])


@pytest.mark.parametrize("assign", [False, True])
def test_indices_of_version_0_1_are_read(assign):
    head, x, _ = trained("fslwf")
    state = copy.deepcopy(head.state_dict())
    state["base"] = head.base
    for name in ("score_index", "position", "support_target"):
        state[name] = state[name].long()
    other = MAKERS["fslwf"]()
    other.load_state_dict(state, assign=assign)
    assert other.score == "energy" and torch.equal(other.base, head.base)
    for a, b in zip(other.predict(x), head.predict(x), strict=True):
        assert torch.equal(a, b)
    small = other.half().float()  # 2,049 is no half
    assert {small.position.dtype, small.support_target.dtype} == {torch.float64}
    assert torch.equal(small.predict(x)[0], head.predict(x)[0])


def test_a_program_of_a_memory_that_lacks_a_class():
    """Compiled or exported, it has what was known then; also where the head was just moved."""
    head, x, _ = trained("oltr")
    head.requires_grad_(False)
    want = head.predict(x)
    moved = copy.deepcopy(head).to("meta").to_empty(device="cpu")
    moved.load_state_dict(head.state_dict())
    program = torch.export.export(Predict(moved), (x,)).module()
    compiled = torch.compile(moved.predict, fullgraph=True, backend="aot_eager")
    for got in (program(x), compiled(x)):
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1])


class Predict(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head.predict(x)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("kind", [*MAKERS, "without"])
def test_dynamic_quantisation(kind, dtype):
    """Of the layers around a head, and of the linear ones within it that no op reads."""
    head, x, y = trained("oltr" if kind == "without" else kind)
    if kind == "without":
        head.classifier.without = ("memory",)
    model = nn.Sequential(nn.Linear(6, 6), head).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, dtype=dtype)
    assert type(quantised[0]) is not nn.Linear
    want, got = head.outputs(x), quantised[1].outputs(x)
    assert (got.logits - want.logits).abs().max() < 0.05
    if kind in ("oltr", "without"):
        assert torch.equal(got.logits, want.logits)
    assert (quantised(x) - model(x)).abs().max() < 0.5
    quantised[1].predict(x)
    quantised[1].loss(x, y)
    assert quantised[1].num_classes == 4 and repr(quantised)


class Loss(nn.Module):
    """A head as DistributedDataParallel wants it: its forward is the loss."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x, y):
        return self.head.loss(x, y)


SUBSETS = [c for n in range(4) for c in itertools.combinations(PARTS, n)]


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("memory_grad", [False, True])
@pytest.mark.parametrize("weight", [0.01, 0])
@pytest.mark.parametrize("without", SUBSETS, ids=str)
def test_every_trainable_parameter_of_a_memory_head_is_trained(
    without, weight, memory_grad, one_process
):
    """Of which DistributedDataParallel raises in the second step where it is not so."""
    head = OLTRHead(6, 4, without=without, feature_loss_weight=weight, memory_grad=memory_grad)
    x, y = torch.randn(12, 6), torch.arange(12) % 4
    head.init_from(None, x, y)
    frozen = {name.split(".")[-2] for name, p in head.named_parameters() if not p.requires_grad}
    parts = {"memory": "fc_hallucinator", "selector": "fc_selector"}
    assert frozen - {"memory"} == {parts[part] for part in without if part in parts}
    model = DistributedDataParallel(Loss(head))
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        sgd.zero_grad()
        model(x + 0.1, y).backward()
        sgd.step()
    assert all((p.grad is not None) == p.requires_grad for p in head.parameters())
    other = OLTRHead(6, 4)
    other.load_state_dict(head.state_dict())  # the same names, whatever is left out


def test_episodes_without_a_class_to_play_novel_reach_every_parameter(one_process):
    head = FSLwFHead(6, [25, 25, 5, 5])
    model, x = DistributedDataParallel(Loss(head)), torch.randn(8, 6)
    for target in ([0, 0, 0, 1, 1, 1, 2, 3], [0] * 8, [2] * 8, [0, 0, 0, 1, 1, 1, 2, 3]):
        model(x, torch.tensor(target)).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_gradients_of_each_row():
    """`vmap` over `grad` of a head's loss, in the reference."""
    head, x, y = trained("oltr")
    loss = Loss(head)
    parameters = {name: p.detach() for name, p in loss.named_parameters()}

    def of_one(parameters, x, y):
        return torch.func.functional_call(loss, parameters, (x[None], y[None]))

    with use_backend("reference"):
        rows = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))(parameters, x, y)
        for row in (0, len(x) - 1):
            loss.zero_grad()
            loss(x[row : row + 1], y[row : row + 1]).backward()
            for name, parameter in loss.named_parameters():
                if parameter.grad is not None:
                    torch.testing.assert_close(rows[name][row], parameter.grad)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("missing", [False, True])
def test_an_ensemble_of_memories(missing, backend):
    classes = torch.arange(20) % (4 if missing else 5)
    heads = [OLTRHead(4, 5) for _ in range(3)]
    for head in heads:
        head.init_from(None, torch.randn(20, 4), classes)
    base, x = copy.deepcopy(heads[0]).to("meta"), torch.randn(7, 4)

    def answers(parameters, buffers, x):
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    def together():
        stacked = torch.func.stack_module_state(heads)
        return torch.func.vmap(answers, in_dims=(0, 0, None))(*stacked, x)

    with use_backend(backend):
        torch.testing.assert_close(together(), torch.stack([head(x) for head in heads]))
        heads[1].init_from(None, torch.randn(9, 4), torch.arange(9) % 3)
        with pytest.raises(ValueError, match="which classes have a centroid to be alike"):
            together()


def test_parametrized_layers():
    """They train and are read by name; what would be written into them is refused."""
    x, y = torch.randn(40, 6), torch.arange(40) % 4
    linear = LinearHead(6, 4)
    plain = copy.deepcopy(linear)
    weight_norm(linear.linear)
    linear.fit_bank([(x, y)], y.bincount())
    plain.fit_bank([(x, y)], y.bincount())
    torch.testing.assert_close(linear.origin, plain.origin)
    with pytest.raises(ValueError, match=r"start_at: expected weight to be a parameter"):
        linear.start_at(torch.ones(4, 6))
    for layer, options in (
        ("fc_hallucinator", {}),
        ("fc_selector", {"selector": "zero"}),
        ("cosnorm_classifier", {"classifier": "means"}),
    ):
        head = OLTRHead(6, 4, without=["reachability"])
        head.init_from(None, x, y)
        before = head.memory.centroids.clone()
        weight_norm(getattr(head.classifier, layer))
        with pytest.raises(ValueError, match=r"init_from: expected weight to be a parameter"):
            head.init_from(None, 2 * x, y, **options)
        assert torch.equal(head.memory.centroids, before)
        head.loss(x, y).backward()
        own = getattr(head.classifier, layer).parametrizations.weight.original1
        assert own.grad.abs().max() > 0
    memory = OLTRHead(6, 4).memory
    weight_norm(memory, "centroids")
    with pytest.raises(ValueError, match="expected centroids to be a parameter"):
        memory.initialise(x, y)


def test_a_pruned_selector_trains_once_it_is_no_longer_pruned():
    x, y = torch.randn(8, 6), torch.arange(8) % 4
    head = OLTRHead(6, 4, without=["reachability"])
    head.init_from(None, x, y)
    prune.l1_unstructured(head.classifier.fc_selector, "weight", 0.5)
    head.loss(x, y).backward()
    prune.remove(head.classifier.fc_selector, "weight")
    for _ in range(2):
        head.loss(x, y).backward()
    assert head.classifier.fc_selector.weight.grad.abs().max() > 0


@pytest.mark.parametrize("number", [99.0, -3.0, float("nan")])
def test_a_score_that_is_none(number):
    head = LinearHead(6, 4)
    state = {**head.state_dict(), "score_index": torch.tensor(number, dtype=torch.float64)}
    with pytest.raises(ValueError, match=f"LinearHead: expected score_index .*got {number}"):
        head.load_state_dict(state)
