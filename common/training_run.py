"""A training run in its folder: what it consists of, how it is saved, and how it goes on."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from common.checkpoint import code_version, load_header, save_checkpoint
from common.device import Precision
from common.errors import UserError
from common.files import save_tensor_file
from common.optimisation import ema_update, make_optimizer
from common.step_meter import StepMeter
from common.training_arguments import identifying, recorded
from common.training_state import (
    COMPACT_FILE,
    STATE_FILE,
    check_averages,
    check_beginning,
    check_identity,
    check_schedule,
    check_warm_up,
    compact,
    find_training_state,
    has_begun,
    load_training_state,
)

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


class TrainingRun:
    """Network, averages, optimiser, critic and step of a run, and the header of the weights that it writes.

    `model.config.to_dict()` says what the network is. `header` goes into the weights' header, and a run is only resumed
    with the same one.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: nn.Module,
        precision: Precision,
        weights_name: str,
        header: dict,
        critic: Critic | None = None,
        images_per_step: int | None = None,
    ):
        """`images_per_step`: where the batch size counts network calls, of which an image may take several."""
        self.args, self.model, self.precision, self.critic = args, model, precision, critic
        self.images_per_step = images_per_step or args.batch_size
        self.weights_path = args.out / weights_name
        described = {name: value for name, value in header.items() if name not in BEGINNING}
        self.identity = {"arguments": identifying(args), "network": model.config.to_dict(), **described}
        self.header = {**header, "arguments": recorded(args), "precision": precision.name}
        self.header["code_version"] = code_version()
        if critic:
            self.header["setup_flop"] = critic.setup_flop

        self.step = 0
        self.warmed_up_from = 0
        self.flop_per_step = 0
        self.meter = StepMeter()
        self.averages = {decay: self._average(decay) for decay in (args.ema_decay, *args.more_ema_decays)}
        self.optimizer = make_optimizer(
            args.optimizer, model, args.learning_rate, args.weight_decay, args.muon_momentum
        )

    def _average(self, decay: float) -> AveragedModel:
        update = ema_update(decay, num_averaged=lambda: self.step)
        # With the buffers: averaged weights do not go with the batch norm statistics of the last ones.
        average = AveragedModel(self.model, multi_avg_fn=update, use_buffers=True)
        average.n_averaged = average.n_averaged.cpu()  # AveragedModel looks at it at every step: no GPU has to wait
        return average

    @property
    def ema_model(self) -> nn.Module:
        return self.averages[self.args.ema_decay].module

    @property
    def training_flop(self) -> int:
        """Of the run so far, with what earlier runs had spent on the weights that it started from (`--init`)."""
        once = self.header.get("initial_flop", 0) + self.header.get("setup_flop", 0)
        return once + self.step * self.flop_per_step

    def resume(self) -> None:
        """Goes on from the run's own training state or, where it has none yet, from that of `--branch-from`.

        Raises UserError where that is another run's, and where there are weights, which would be lost, but no whole
        state.
        """
        args, run = self.args, self._run_to_go_on_from()
        if run is None:
            return
        state = load_training_state(find_training_state(run))
        check_identity(state, self.identity, run, is_own=run == args.out)
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
            check_warm_up(state, args, run)
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

    def _run_to_go_on_from(self) -> Path | None:
        """Its own folder, that of `--branch-from`, or None where it is to begin."""
        out = self.args.out
        if has_begun(out):
            return out
        if (out / COMPACT_FILE).is_file():  # from which it would end as another run, in place of its own weights
            raise UserError(
                f"of the run in {out} only the compact state is left: --branch-from {out} to another --out, and with "
                "more --steps where it was finished"
            )
        if self.weights_path.exists():
            raise UserError(
                f"{self.weights_path} is there, but no training state to go on from: use another --out, or move it"
            )
        return self.args.branch_from

    def save(self, and_compact: bool = False) -> None:
        """Writes the training state and the EMA weights. Raises UserError, and writes neither, where one is not finite.

        The state comes first: where there are weights, there is a state. `complete` makes what a kill in between leaves
        undone.
        """
        self.require_finite()
        state = self._state()
        save_tensor_file(self.args.out / STATE_FILE, state)
        if and_compact:
            save_tensor_file(self.args.out / COMPACT_FILE, compact(state))
        self.save_weights()
        self.meter.start()

    def complete(self) -> None:
        """Makes what is missing of the weights and the compact state that a finished run is asked for."""
        if not all(self._is_current(path, decay) for decay, path in self._paths_of_averages(self.weights_path).items()):
            self.save_weights()
        if self.args.compact_state and not self._compact_state_is_current():
            save_tensor_file(self.args.out / COMPACT_FILE, compact(self._state()))

    def _compact_state_is_current(self) -> bool:
        try:
            return load_training_state(self.args.out / COMPACT_FILE)["step"] == self.step
        except UserError:
            return False

    def _state(self) -> dict:
        return {
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

    def save_weights(self, path: Path | None = None) -> None:
        """Writes the averages: by default to the run's own files, else to `path` and beside it."""
        totals = {
            "step": self.step,
            "images_seen": self.step * self.images_per_step,
            "training_flop": self.training_flop,
        }
        for decay, target in self._paths_of_averages(path or self.weights_path).items():
            save_checkpoint(target, self.averages[decay].module, {**self.header, **totals, "ema_decay": decay})

    def _paths_of_averages(self, path: Path) -> dict[float, Path]:
        """`path` for that of `--ema-decay`; the others' names say which they are."""
        others = {decay: path.with_name(f"{path.stem}_ema_{decay}{path.suffix}") for decay in self.args.more_ema_decays}
        return {self.args.ema_decay: path, **others}

    def _is_current(self, path: Path, decay: float) -> bool:
        """Whether the file holds the average by `decay` at this step."""
        try:
            header = load_header(path)
        except UserError:
            return False
        return (header.get("ema_decay"), header.get("step")) == (decay, self.step)

    def require_finite_steps(self) -> None:
        """Raises UserError where the loss or the gradient of a step is not finite; no such step has been saved."""
        steps_ago = self.meter.look()
        if steps_ago:
            raise UserError(
                f"the loss or its gradient is not finite at step {self.step - steps_ago + 1}; {self._advice()}"
            )

    def require_finite(self) -> None:
        """Raises UserError where a step was not finite, or what the last of them made of the run."""
        self.require_finite_steps()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(self._state())):
            raise UserError(f"the weights are not finite after step {self.step}; {self._advice()}")

    def _advice(self) -> str:
        return (
            f"{self.args.out} is as it was last saved. Try --precision fp32, or a lower --learning-rate with another "
            "--out"
        )


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for element in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(element)
