"""The training loop that all training stages share.

A stage brings a model and a loss; the loop brings the schedule, the optimiser, EMA, the log, and the promise that a run
which was stopped and run again ends bit-identical, on one CPU, to one that never stopped. Randomness is a function of
seed and step, so the step is all that has to be remembered of it.
"""

import argparse
import time
from collections.abc import Callable, Collection
from copy import deepcopy
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.checkpoint import code_version, load_header, save_checkpoint
from common.device import Precision
from common.errors import UserError
from common.files import folder_to_oneself, save_tensor_file
from common.images import save_picture
from common.noise import derive_seed
from common.optimisation import ema_update, learning_rate_factor, make_optimizer
from common.run_log import RunLog, draw_loss_curve
from common.step_meter import StepMeter
from common.stopping import StopRequest
from common.training_arguments import identifying, recorded
from common.training_state import (
    COMPACT_FILE,
    STATE_FILE,
    check_averages,
    check_beginning,
    check_identity,
    check_schedule,
    compact,
    find_training_state,
    load_training_state,
)
from common.unet import count_values

BEGINNING = ("initial", "initial_flop")
"""What a header says of the weights that a run started from; no part of its identity, since they may be lost by now."""


class Critic(Protocol):
    """A part of the loss that learns beside the network, after each of its steps, and whose state is the run's."""

    setup_flop: int
    """Of the forward passes that it needs once in a run, before it can learn."""

    def zero_grad(self) -> None: ...

    def loss(self, step: int) -> Tensor | None:
        """What it learns from in step `step`, under autocast: a scalar, or None where it learns without a gradient."""

    def update(self) -> None:
        """Its own step, after the backward pass of `loss` and outside autocast."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Trainer:
    """One run of a training stage in its folder: its networks, its optimiser, and how far it has come.

    `batch_loss(network, step)` is the loss of step `step`, as a scalar, under autocast; all of its randomness must be
    derived from the run's seed and `step`. `evaluate(ema_network)` returns what was measured on held-out samples, by
    name. `preview(ema_network)` returns a picture. `model.config.to_dict()` says what the network is. `header` goes
    into the weights' header, and a run is only resumed with the same one. After each of `snapshot_steps`, the EMA
    weights also go to a file of their own. A `critic`, which `batch_loss` asks, makes a step after each of the
    network's.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: nn.Module,
        precision: Precision,
        weights_name: str,
        batch_loss: Callable[[nn.Module, int], Tensor],
        evaluate: Callable[[nn.Module], dict[str, float]],
        header: dict,
        preview: Callable[[nn.Module], Image.Image] | None = None,
        critic: Critic | None = None,
        snapshot_steps: Collection[int] = (),
    ):
        self.args = args
        self.model = model
        self.precision = precision
        self.weights_path = args.out / weights_name
        self.batch_loss, self.evaluate, self.preview, self.critic = batch_loss, evaluate, preview, critic
        self.snapshot_steps = snapshot_steps
        described = {name: value for name, value in header.items() if name not in BEGINNING}
        self.identity = {"arguments": identifying(args), "network": model.config.to_dict(), **described}
        self.header = {**header, "arguments": recorded(args), "precision": precision.name}
        self.header["code_version"] = code_version()  # of the code that runs, whatever is committed meanwhile

        self.step = 0
        self.warmed_up_from = 0
        self.meter = StepMeter()
        self.averages = {decay: self._average(decay) for decay in (args.ema_decay, *args.more_ema_decays)}
        self.optimizer = make_optimizer(
            args.optimizer, model, args.learning_rate, args.weight_decay, args.muon_momentum
        )
        self.flop_per_step = self._count_flop()
        if critic:
            self.header["setup_flop"] = critic.setup_flop
        self.network = torch.compile(model) if args.compile else model

    @property
    def ema_model(self) -> nn.Module:
        return self.averages[self.args.ema_decay].module

    @property
    def training_flop(self) -> int:
        """Of the run so far, with what earlier runs had spent on the weights that it started from (`--init`)."""
        once = self.header.get("initial_flop", 0) + self.header.get("setup_flop", 0)
        return once + self.step * self.flop_per_step

    def _average(self, decay: float) -> AveragedModel:
        average = AveragedModel(self.model, multi_avg_fn=ema_update(decay, num_averaged=lambda: self.step))
        average.n_averaged = average.n_averaged.cpu()  # AveragedModel looks at it at every step: no GPU has to wait
        return average

    def train(self) -> int:
        """Goes on from where the run was, until the last step, the time limit or a signal.

        Returns the script's exit status. Raises UserError where the run cannot go on, or another process trains it.
        """
        with folder_to_oneself(self.args.out):
            self._resume()
            return self._train()

    def _train(self) -> int:
        args = self.args
        if self.step == args.steps:
            if not self._weights_are_there():
                self._save_weights()
            print(f"{args.out} is finished: {self.step:,} steps")
            return 0
        print(
            f"{self.header['stage']}: {count_values(self.model):,} parameters, {self.flop_per_step:.3g} FLOP a step, "
            f"{self.precision.device}, {self.precision.name}, from step {self.step:,} to {args.steps:,} in {args.out}"
        )
        log = RunLog(args.out, self.step)
        stop = StopRequest(args.max_minutes)
        last_save = time.monotonic()
        bar = tqdm(total=args.steps, initial=self.step, unit="step", desc=self.header["stage"], smoothing=0.05)
        self.meter.start()

        with stop, bar:
            while self.step < args.steps:
                self.meter.add(self._train_step())
                self.step += 1
                bar.update()
                finished = self.step == args.steps
                if self.step % args.log_every == 0 or finished:
                    self._require_finite()
                    metrics = self.meter.take_window(args.batch_size)
                    bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.0f} images/s")
                    log.add(self.step, **metrics, **self._progress())
                if self.step % args.evaluate_every == 0 or finished:
                    log.add(self.step, **self._evaluate(), **self._progress())
                if self.step in self.snapshot_steps:
                    self._require_finite()
                    self._save_weights(args.out / "snapshots" / f"step_{self.step:07d}.safetensors")
                if time.monotonic() - last_save > 60 * args.save_minutes:
                    self._save()
                    last_save = time.monotonic()
                if stop:  # asked only now: however short its time, a leg goes on by one step
                    break
            self._save(and_compact=args.compact_state)

        log.close()
        draw_loss_curve(log.records, args.out / "loss.png", f"{self.header['stage']} in {args.out.name}")
        return self._report(stop)

    def _train_step(self) -> Tensor:
        """One step of the optimiser and of the average. Returns the loss and the gradient's norm as a tensor (2,)."""
        args = self.args
        factor = learning_rate_factor(self.step, args.warmup_steps, args.steps, args.decay_steps, self.warmed_up_from)
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * factor
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            loss = self.batch_loss(self.network, self.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), args.gradient_clip)
        self.optimizer.step()
        if self.critic:
            self._critic_backward(self.step)
            self.critic.update()
        for average in self.averages.values():
            average.update_parameters(self.model)
        return torch.stack([loss.detach(), norm])

    def _critic_backward(self, step: int) -> None:
        self.critic.zero_grad()  # the network's backward pass left gradients here, too
        with self.precision.autocast():
            loss = self.critic.loss(step)
        if loss is not None:
            loss.backward()

    def _require_finite(self) -> None:
        """Raises UserError where the loss or the gradient of a step is not finite; no such step has been saved."""
        steps_ago = self.meter.look()
        if steps_ago:
            raise UserError(
                f"the loss or its gradient is not finite at step {self.step - steps_ago}; {self.args.out} is as it was "
                "last saved. Try a lower --learning-rate, or --precision fp32"
            )

    def _evaluate(self) -> dict[str, float]:
        self._require_finite()
        metrics = {}
        with torch.no_grad(), self.precision.autocast():
            for decay, average in self.averages.items():
                suffix = "" if average.module is self.ema_model else f"_ema_{decay:g}"
                measured = self.evaluate(average.module.eval())
                metrics |= {f"{name}{suffix}": value for name, value in measured.items()}
        if self.preview:
            save_picture(self.preview(self.ema_model), self.args.out / "previews" / f"step_{self.step:07d}.png")
        self.meter.start()
        return metrics

    def _progress(self) -> dict[str, float]:
        return {"seconds": round(self.meter.seconds, 1), "training_flop": float(self.training_flop)}

    def _count_flop(self) -> int:
        """Of a step: forward and backward passes of every network in it, a critic's included, but no optimiser."""
        model = deepcopy(self.model).train()
        with FlopCounterMode(display=False) as counter:
            with self.precision.autocast():
                loss = self.batch_loss(model, 0)
            loss.backward()
            if self.critic:
                self._critic_backward(0)
        return counter.get_total_flops()

    def _resume(self) -> None:
        """Goes on from the run's own training state or, where it has none yet, from that of `--branch-from`."""
        args = self.args
        run = args.out
        if not find_training_state(run).is_file():
            if args.branch_from is None:
                return
            run = args.branch_from
        state = load_training_state(find_training_state(run))
        check_identity(state, self.identity, run)
        check_schedule(state, args, run)
        check_averages(state, self.averages, run)
        check_beginning(state, self.header, run)
        self.model.load_state_dict(state["model"])
        self.header |= state["beginning"]
        self.step = state["step"]
        self.meter.load_state_dict(state)
        if state["optimizer"] is None:
            if self.step == args.steps:
                raise UserError(
                    f"of the run in {run} only the last weights are left: --branch-from it with more --steps"
                )
            self.warmed_up_from = self.step
            for average in self.averages.values():
                average.module.load_state_dict(state["model"])
                average.n_averaged.fill_(self.step)  # at 0, the next weights would take the place of these
        else:
            for decay, average in self.averages.items():
                average.load_state_dict(state["averages"][str(decay)])
            if self.critic:
                self.critic.load_state_dict(state["critic"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.warmed_up_from = state["warmed_up_from"]

    def _save(self, and_compact: bool = False) -> None:
        """Writes the EMA weights and the training state, once the steps that they hold are known to be finite."""
        self._require_finite()
        # The state comes last: a run that is finished by its state has its weights.
        self._save_weights()
        state = {
            "model": self.model.state_dict(),
            "averages": {str(decay): average.state_dict() for decay, average in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "critic": self.critic.state_dict() if self.critic else None,
            "step": self.step,
            **self.meter.state_dict(),
            "warmed_up_from": self.warmed_up_from,
            "schedule": [self.args.steps, self.args.decay_steps],
            "identity": self.identity,
            "beginning": {name: self.header[name] for name in BEGINNING if name in self.header},
        }
        save_tensor_file(self.args.out / STATE_FILE, state)
        if and_compact:
            save_tensor_file(self.args.out / COMPACT_FILE, compact(state))
        self.meter.start()

    def _weights_are_there(self) -> bool:
        """Whether the file of the weights is whole, and of the average that is asked for."""
        try:
            return load_header(self.weights_path).get("ema_decay") == self.args.ema_decay
        except UserError:
            return False

    def _save_weights(self, path: Path | None = None) -> None:
        totals = {
            "step": self.step,
            "images_seen": self.step * self.args.batch_size,
            "training_flop": self.training_flop,
        }
        path = path or self.weights_path
        for decay, average in self.averages.items():
            name = path.name if average.module is self.ema_model else f"{path.stem}_ema_{decay:g}{path.suffix}"
            save_checkpoint(path.with_name(name), average.module, {**self.header, **totals, "ema_decay": decay})

    def _report(self, stop: StopRequest) -> int:
        args = self.args
        print(
            f"{self.weights_path}: step {self.step:,} of {args.steps:,}, {self.step * args.batch_size:,} examples, "
            f"{self.training_flop:.3g} training FLOP, {self.meter.seconds / 60:.1f} minutes of training"
        )
        if self.step == args.steps:
            return 0
        print("paused: the same command goes on from here")
        return 128 + stop.signal_number if stop.signal_number else 0


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all randomness in one training step."""
    return torch.Generator(device).manual_seed(derive_seed("step", seed, step))
