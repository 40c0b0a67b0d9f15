"""The two-stage training loop. Everything it needs to go on after a kill is in its checkpoints.

Stage 1 trains backbone and linear classifier. Stage 2 puts another head in the classifier's place:
the meta-embedding on the visual memory, or a classifier made anew on frozen features. It trains
on, or, where its kind needs no steps, is fitted and judged at once.
The order of the data, its augmentation, all that is drawn in a step and the learning rate are
functions of (seed, step); so the state of a run is its step and its tensors. Several processes
(`oltr_ext.engine.distributed`) change the result by rounding alone, and by masks of dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from oltr_ext._defaults import own_defaults
from oltr_ext.config.epochs import asked_epochs, settle_epochs
from oltr_ext.config.schema import Config, Stage
from oltr_ext.data import ImageList, Sampler
from oltr_ext.data.samplers import Ints, mix
from oltr_ext.engine import checkpoint, class_shards, distributed, enrolment, feasible, preflight
from oltr_ext.engine.base import described
from oltr_ext.engine.batchnorm import synchronise
from oltr_ext.engine.build import (
    build_optimizer,
    build_sampler,
    callers_state,
    lr_factor,
    memory_format,
    model_shape,
    seed_everything,
    wants_of,
)
from oltr_ext.engine.checkpoint import State
from oltr_ext.engine.evaluate import calibrate, collect, validate
from oltr_ext.engine.features import on_features
from oltr_ext.engine.floor import below_floor
from oltr_ext.engine.handover import hand_over
from oltr_ext.engine.lock import locked
from oltr_ext.engine.logs import Logs
from oltr_ext.engine.preflight import AFTERWARDS, OtherRunError
from oltr_ext.engine.sets import Calibration
from oltr_ext.engine.settle import expect, expected_accuracy, settle, settled_by, share_of
from oltr_ext.engine.splits import Splits, load_splits, make_loader
from oltr_ext.engine.stopping import TrainingError, stopped
from oltr_ext.engine.tensorfile import TensorFile
from oltr_ext.models import OLTRModel
from oltr_ext.nn.layout import is_dtensor

__all__ = ["OtherRunError", "TrainingError", "train"]

Say = Callable[[str], None]


@callers_state()
@own_defaults()
def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = True,
    stage1: str | Path | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Train as configured, or go on where an earlier call with the same arguments stopped.

    In a process group of `torch.distributed`, every process calls this with the same arguments,
    and `out` is on a file system that all of them see. Another number of them may go on with a run.

    Args:
        out: folder of the run: `model.safetensors` (the result), `last`, `previous`, `best` and
            `best_stage1` checkpoints, `log.csv`, `tensorboard/`.
        resume: False starts afresh and removes what an earlier run left in `out`.
        stage1: folder or model of a finished run of stage 1 alone (``stage2: null``), otherwise
            configured as this one. Stage 2 starts from it, as if this run had trained it. To go on,
            it must be there still.
        say: gets a line of text now and then.

    Returns:
        Path of the trained model, with its threshold for "unknown".

    Raises:
        ValueError: data, configuration and number of processes do not fit; `out` or `stage1`
            holds another run, `out` holds `stage1`, files of another make, or enrolled classes and
            training begins afresh; an image cannot be read, beyond `data.max_bad_images`.
        BusyError: another process works in `out`.
        TrainingError: the loss is no longer finite.
    """
    out = Path(out)
    first = preflight.check_apart(out, stage1)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    told = say if distributed.lead() else lambda _: None
    feasible.check_backbone(config)
    splits = load_splits(config.data, wants_of(config))
    config = config.model_copy(update={"data": splits.data})  # its checkpoints say what was chosen
    with locked(out, "a training", told) if distributed.lead() else nullcontext():
        return _Run(config, splits, out, told, resume=resume, stage1=first).go()


class _Run:
    def __init__(
        self, config: Config, splits: Splits, out: Path, say: Say, resume: bool, stage1: Path | None
    ) -> None:
        self.splits, self.out, self.say = splits, out, say
        feasible.check_batches(config, splits)
        self.device = distributed.device_of(config.device)
        self.state = State()
        self.scaler = class_shards.scaler_for(self.device, config)
        self.say_once = cache(say)
        found = checkpoint.load_latest(out) if resume else None
        self.asked_epochs = asked_epochs(config)
        self.config = settle_epochs(config, len(splits.train), found and found[1])
        self.stages = [s for s in (self.config.stage1, self.config.stage2) if s is not None]
        if found is not None:
            self.restore(found, stage1)
            return
        preflight.check_folder(out, self.config, splits, fresh=not resume, say=say)
        say(preflight.outline(self.config, splits, self.device, self.asked_epochs))
        if stage1 is not None:
            self.start_from(stage1)
        else:
            self.enter_stage(1)
            feasible.check_last_stage(config, splits, self.model)
        if not resume and distributed.lead():  # not before the new run is known to start
            checkpoint.clear(out)

    def go(self) -> Path:
        with self.open_logs() as self.logs:
            while True:
                self.train_stage()
                if self.state.stage == len(self.stages):
                    return self.finish()
                if self.config.select == "best":
                    class_shards.load_learned(self.model, self.stage_1_best())
                self.enter_stage(self.state.stage + 1)

    @property
    def best(self) -> Path:
        """Where the best epoch of this stage is kept."""
        final = self.state.stage == len(self.stages)
        return self.out / (checkpoint.BEST if final else checkpoint.STAGE_1_BEST)

    def stage_1_best(self) -> TensorFile:
        """The model's tensors; those of a run from before it had a file of its own, too."""
        path = self.best if self.best.exists() else self.out / checkpoint.BEST
        tensors, header = checkpoint.opened(path)
        if header["state"]["stage"] != 1:
            raise OtherRunError(f"{path} holds stage 2, written over the best epoch of stage 1")
        return checkpoint.under("model.", tensors)

    def open_logs(self) -> AbstractContextManager[Logs | None]:
        if not distributed.lead():
            return nullcontext()
        return Logs(self.out, position=self.state.log_position, step=self.state.total)

    def enter_stage(self, number: int) -> None:
        """A fresh model for the stage; stage 2 starts from what stage 1 learned."""
        seed_everything(self.config.seed, number)
        model = class_shards.built(
            self.config, number, self.splits, self.device, weights=number == 1
        )
        if number == 2:
            assert self.config.stage2 is not None
            prior = self.config.test_prior
            hand_over(self.model, model, self.config.stage2, self.splits, self.device, prior)
            self.state = State(stage=2, total=self.state.total, origin=self.state.origin)
        distributed.same_start(t for t in model.state_dict().values() if not is_dtensor(t))
        self.take(model)

    def start_from(self, run: Path) -> None:
        """Enter stage 2 from another run's stage 1."""
        if self.config.stage2 is None:
            raise ValueError(f"nothing to start from {run}: this configuration has no stage 2")
        path, tensors, header = checkpoint.open_model(run)
        preflight.check_stage_1(path, tensors, header, self.config, self.splits, say=self.say)
        weights = checkpoint.under("model.", tensors)
        held = tensors.named({k: k for k in tensors if not k.startswith("model.head.bank.")})
        self.model = class_shards.read_back(path, held, header, self.config, self.device)
        feasible.check_last_stage(self.config, self.splits, self.model)
        self.state = State(total=header["state"]["total"], origin=checkpoint.fingerprint(weights))
        self.scaler.load_state_dict(header["scaler"])
        self.enter_stage(2)
        self.say(f"stage 1 taken from {path}")

    def take(self, model: OLTRModel) -> None:
        if distributed.world() > 1:
            synchronise(model)
        expect(model.head, share_of(self.config.test_prior, self.splits))
        if self.config.model.compile:
            model.backbone.compile()
        if self.config.model.tune == "nothing" and self.splits.train is not self.splits.plain:
            self.splits = on_features(model, self.splits, self.config, self.out, self.say)
        self.model = model
        self.optimizer = build_optimizer(model, self.stages[self.state.stage - 1])
        class_shards.regroup(self.optimizer)
        self.norm = torch.zeros(())

    def train_stage(self) -> None:
        """Epochs of the stage, from the current step to its last, by one loader, started once."""
        stage, state = self.stages[self.state.stage - 1], self.state
        if stage.epochs == 0:  # fitted on entry
            if state.best < 0:  # and not yet written down
                self.end_epoch(steps=1)
            return
        steps = self.steps_per_epoch()
        self.splits.train.seed = seed = int(mix(self.config.seed, state.stage))
        sampler = build_sampler(stage, self.splits.train.labels, seed)
        total = steps * int(stage.epochs)
        keys = distributed.share(self.batches(sampler, stage), stage.accumulate)
        parts = make_loader(self.splits.train, keys, self.splits.workers, self.device)
        name = f"stage {state.stage}/{len(self.stages)}"
        hide = None if distributed.lead() else True
        with tqdm(total=total, initial=state.step, desc=name, unit="step", disable=hide) as bar:
            while state.step < total:
                self.step(islice(parts, stage.accumulate), steps)
                bar.update()
                if state.step % steps == 0:
                    end = self.end_epoch(steps)
                    bar.set_postfix_str(end)
                    if bar.disable:  # no terminal
                        self.say(f"{name}, epoch {state.step // steps}/{stage.epochs}: {end}")
                    continue
                if state.step % self.config.log_every == 0:
                    self.log(steps)
                every = self.config.checkpoint_every
                if every is not None and state.step % every == 0:
                    self.save(threshold=None)

    def batches(self, sampler: Sampler, stage: Stage) -> Iterator[Ints]:
        """Keys of the batches of all steps that are left in the stage, made an epoch at a time."""
        step, steps = self.state.step, self.steps_per_epoch()
        sampler.load_state_dict({"position": step * stage.batch_size})
        while step < steps * int(stage.epochs):
            left = steps - step % steps
            yield from sampler.batches(stage.batch_size, left)
            step += left

    def steps_per_epoch(self) -> int:
        return len(self.splits.train) // self.stages[self.state.stage - 1].batch_size

    def step(self, parts: Iterable[tuple[Tensor, Tensor]], steps: int) -> None:
        """One batch, in the stage's parts: forward, backward, into the weights."""
        config, state = self.config, self.state
        stage = self.stages[state.stage - 1]
        factor = lr_factor(stage, state.step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        kind = torch.float16 if config.amp == "fp16" else torch.bfloat16
        total = torch.zeros((), device=self.device)
        for number, (images, target) in enumerate(parts):
            with torch.autocast(self.device.type, dtype=kind, enabled=config.amp != "off"):
                self.reseed(number, 1 + distributed.rank())  # dropout of these rows
                features = self.model.features(images.to(memory_format=memory_format(config)))
                self.reseed(number, 0)  # what all processes draw alike
                loss = self.model.head.loss(features, target, gather=distributed.gather)
                loss = loss / stage.accumulate
            self.scaler.scale(loss).backward()
            total += loss.detach()
        state.step, state.total = state.step + 1, state.total + 1
        state.losses.append(distributed.mean(total))
        if not math.isfinite(state.losses[-1]):
            raise stopped(f"the loss is {state.losses[-1]}", state, self.out)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in trained if p.grad is not None]
        distributed.average([g for g in grads if not is_dtensor(g)])  # the others have their mean
        self.scaler.unscale_(self.optimizer)
        self.norm = class_shards.clip(trained, stage.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def reseed(self, *keys: int) -> None:
        """Make torch's generators a function of the seed, the step and the keys."""
        word = mix(self.config.seed, self.state.stage, 8, self.state.step, *keys)
        torch.manual_seed(int(word) >> 1)

    def end_epoch(self, steps: int) -> str:
        """Validate, calibrate, log, and write the checkpoints of this epoch; a line on it."""
        self.weights()  # say so here, before their NaN shows up as a score
        seen = collect(self.model, self.splits.val, self.device, workers=self.splits.workers)
        opened, strangers = None, self.splits.open_val
        if strangers is not None:
            opened = collect(self.model, strangers, self.device, workers=self.splits.workers)
        row = validate(seen, opened, self.splits.train_counts, self.config.data.shots)
        threshold = calibrate(self.model.head, seen, opened, self.config.open_set)
        loss = self.log(steps, row)
        reached = expected_accuracy(seen, self.config.test_prior, self.splits)
        if reached > self.state.best:
            self.state.best = reached
            self.save(threshold=threshold, path=self.best)
        self.save(threshold=threshold)
        self.tell_bad_images()
        distributed.barrier()  # the files are there for all
        return f"loss {loss:.3f}, val {100 * row['val_overall']:.1f} %"

    def tell_bad_images(self) -> None:
        train = self.splits.train
        if isinstance(train, ImageList) and train.max_bad:
            distributed.unite(train.bad)
            train.check()
        for line in self.splits.problems():
            self.say_once(line)

    def log(self, steps: int, extra: Mapping[str, float] | None = None) -> float:
        state, row, loss = self.state, dict(extra or {}), math.nan
        if state.losses:
            loss = sum(state.losses) / len(state.losses)
            rates = {f"lr_{g['name']}": float(g["lr"]) for g in self.optimizer.param_groups}
            row = {"loss": loss, "grad_norm": float(self.norm), **rates, **row}
        state.losses.clear()
        place = {"stage": state.stage, "epoch": (state.step - 1) // steps + 1, "step": state.step}
        if self.logs is not None:
            self.logs.row({**place, **row}, state.total)
        return loss

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors, all of them finite, or an error that says which is not."""
        tensors = self.model.learned_state()
        if (name := class_shards.not_finite(tensors)) is not None:
            raise stopped(f"{name} is no longer finite", self.state, self.out)
        return {f"model.{name}": value for name, value in tensors.items()}

    def save(self, *, threshold: dict[str, Any] | None, path: Path | None = None) -> None:
        """Write everything a run needs to go on to the same bits."""
        tensors = self.weights()
        tensors |= class_shards.momentum(self.optimizer, self.model, "momentum.")
        if self.logs is not None:
            self.state.log_position = self.logs.position()
        header = {
            "config": self.config.model_dump(mode="json"),
            "asked_epochs": self.asked_epochs,
            "class_names": self.splits.class_names,
            "shape": model_shape(self.splits),
            "base": described(self.model, self.config),
            "data": self.splits.fingerprint,
            "state": asdict(self.state),
            "scaler": self.scaler.state_dict(),
            "threshold": threshold,
        }
        if path is None:
            checkpoint.save_last(self.out, tensors, header)
        else:
            checkpoint.save(path, tensors, header)

    def restore(self, found: checkpoint.Latest, stage1: Path | None) -> None:
        """Take up a checkpoint: model, momentum, scaler, place in the data and log."""
        tensors, header, problems = found
        for problem in problems:
            self.say(problem)
        self.state = checkpoint.state_of(header)
        stage, step, end = self.state.stage, self.state.step, int(self.stages[-1].epochs)
        done = stage == len(self.stages) and step == self.steps_per_epoch() * end
        preflight.check_same_run(
            self.out, header, self.config, self.splits, AFTERWARDS, done=done, say=self.say
        )
        if stage1 is not None:
            first = checkpoint.open_model(stage1)
            self.state.origin = preflight.check_origin(
                self.out, self.state.origin, first, self.config, self.splits, say=self.say
            )
        model = class_shards.read_back(self.out, tensors, header, self.config, self.device)
        self.take(model)
        class_shards.take_momentum(self.optimizer, model, checkpoint.under("momentum.", tensors))
        self.scaler.load_state_dict(header["scaler"])
        going_on = f"going on from stage {stage}, step {step} in {self.out}"
        self.say(f"{self.out} is trained already" if done else going_on)

    def finish(self) -> Path:
        """The chosen epoch's weights, and what is settled of them: what the other commands read."""
        path, last = self.out / checkpoint.MODEL, self.out / checkpoint.LAST
        found, header = checkpoint.opened(self.best if self.config.select == "best" else last)
        if preflight.is_settled(path, header, self.config):
            return path
        learned = checkpoint.under("model.", found)
        class_shards.load_learned(self.model, learned)
        threshold, seen = settle(self.model, self.config, self.splits, self.device, self.say)
        header |= {"threshold": threshold, "settled": settled_by()}
        header["scaler"] = self.scaler.state_dict()  # the last epoch's: a stage 2 goes on with it
        header["config"] = self.config.model_dump(mode="json")
        tensors = {**self.weights(), **Calibration.of(seen).tensors()}
        if distributed.lead():
            tensors, header = enrolment.carry(path, tensors, header, learned)
        checkpoint.save(path, tensors, header)
        if distributed.lead():
            for line in below_floor(self.splits, seen):
                self.say(line)
        distributed.barrier()
        return path
