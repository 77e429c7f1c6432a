"""The training loop that all three training stages share.

A stage brings a model and a loss; the loop brings the schedule, AdamW, EMA, the log, and the promise that a run which
was stopped and run again ends bit-identical, on CPU, to one that never stopped. Randomness is a function of seed and
step, so the step is all that has to be remembered of it.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.checkpoint import code_version, load_checkpoint, save_checkpoint
from common.device import Precision
from common.errors import UserError
from common.files import read_tensor_file, save_tensor_file
from common.images import save_picture
from common.noise import derive_seed
from common.optimisation import ema_update, learning_rate_factor
from common.run_log import RunLog, draw_loss_curve
from common.stopping import StopRequest
from common.training_arguments import MAY_CHANGE_ON_RESUME, check_schedule
from common.unet import UNet, count_values

STATE_FILE = "training_state.pt"


class Trainer:
    """One run of a training stage in its folder: its networks, its optimiser, and how far it has come.

    `batch_loss(network, step)` is the loss of step `step`, as a scalar, under autocast; all of its randomness must be
    derived from the run's seed and `step`. `evaluate(ema_network)` returns metrics by name, `held_out_loss` among them.
    `preview(ema_network)` returns a picture. `header` goes into the weights' header as it is.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: UNet,
        precision: Precision,
        weights_name: str,
        batch_loss: Callable[[nn.Module, int], Tensor],
        evaluate: Callable[[UNet], dict[str, float]],
        preview: Callable[[UNet], Image.Image],
        header: dict,
    ):
        check_schedule(args)
        self.args = args
        self.model = model
        self.precision = precision
        self.weights_path = args.out / weights_name
        self.batch_loss, self.evaluate, self.preview = batch_loss, evaluate, preview
        identity = {key: value for key, value in vars(args).items() if key not in MAY_CHANGE_ON_RESUME}
        self.header = {"arguments": identity, **header}
        self.code_version = code_version()  # of the code that runs, whatever is committed meanwhile

        self.ema = AveragedModel(model, multi_avg_fn=ema_update(args.ema_decay))
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        self.flop_per_step = self._count_flop()
        self._resume()
        self.network = torch.compile(model) if args.compile else model

    @property
    def ema_model(self) -> UNet:
        return self.ema.module

    def train(self) -> int:
        """Trains until the last step, the time limit or a signal. Returns the script's exit status."""
        args = self.args
        if self.step == args.steps:
            self._export()
            print(f"{args.out} is finished: {self.step:,} steps. More --steps prolong it.")
            return 0
        print(
            f"{self.header['stage']}: {count_values(self.model):,} parameters, {self.flop_per_step:.3g} FLOP a step, "
            f"{self.precision.device}, {self.precision.name}, from step {self.step:,} to {args.steps:,} in {args.out}"
        )
        log = RunLog(args.out, self.step)
        stop = StopRequest(args.max_minutes)
        last_save = time.monotonic()
        bar = tqdm(total=args.steps, initial=self.step, unit="step", desc=self.header["stage"], smoothing=0.05)
        self._begin_window()

        with stop, bar:
            while self.step < args.steps and not stop:
                self.pending.append(self._train_step())
                self.step += 1
                bar.update()
                finished = self.step == args.steps
                if self.step % args.log_every == 0 or finished:
                    metrics = self._close_window()
                    bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.0f} images/s")
                    log.add(self.step, **metrics, **self._progress())
                if self.step % args.evaluate_every == 0 or finished:
                    log.add(self.step, **self._evaluate(), **self._progress())
                if time.monotonic() - last_save > 60 * args.save_minutes:
                    self._save()
                    last_save = time.monotonic()

        self._save()
        log.close()
        draw_loss_curve(log.records, args.out / "loss.png", f"{self.header['stage']} in {args.out.name}")
        return self._report(stop)

    def _train_step(self) -> Tensor:
        """One step of the optimiser and of the average. Returns the loss and the gradient's norm as a tensor (2,)."""
        args = self.args
        factor = learning_rate_factor(self.step, args.warmup_steps, args.steps, args.decay_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * factor
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            loss = self.batch_loss(self.network, self.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), args.gradient_clip)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        return torch.stack([loss.detach(), norm])

    def _begin_window(self) -> None:
        self.pending: list[Tensor] = []
        self.window_began = time.monotonic()

    def _close_window(self) -> dict[str, float]:
        """Looks at the steps since the last look, and begins a new window: looking at every step would stall a GPU.

        Raises UserError where a loss or a gradient among them is not finite; none of these steps has been saved.
        """
        if not self.pending:
            return {}
        values = torch.stack(self.pending).float().cpu()  # waits for the device, so the time is that of finished steps
        finite = torch.isfinite(values).all(dim=1)
        if not finite.all():
            step = self.step - len(values) + int(torch.nonzero(~finite)[0])
            raise UserError(
                f"the loss or its gradient is not finite at step {step}; {self.args.out} is as it was last saved. "
                "Try a lower --learning-rate, or --precision fp32"
            )
        seconds = time.monotonic() - self.window_began
        self.seconds += seconds
        loss, norm = values.mean(dim=0).tolist()
        rate = len(values) * self.args.batch_size / seconds
        self._begin_window()
        return {"loss": loss, "gradient_norm": norm, "images_per_second": rate}

    def _evaluate(self) -> dict[str, float]:
        self._close_window()
        self.ema_model.eval()
        with torch.no_grad(), self.precision.autocast():
            metrics = self.evaluate(self.ema_model)
        save_picture(self.preview(self.ema_model), self.args.out / "previews" / f"step_{self.step:07d}.png")
        self._begin_window()
        return metrics

    def _progress(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 1), "training_flop": float(self.step * self.flop_per_step)}

    def _count_flop(self) -> int:
        """Of one whole training step: forward and backward passes of every network in it."""
        model = deepcopy(self.model).train()
        with FlopCounterMode(display=False) as counter, self.precision.autocast():
            self.batch_loss(model, 0).backward()
        return counter.get_total_flops()

    def _resume(self) -> None:
        args = self.args
        path = args.out / STATE_FILE
        if not path.is_file() and args.branch_from is None:
            return
        branching = not path.is_file()
        state = load_training_state(args.branch_from / STATE_FILE if branching else path)
        arguments, earlier = self.header["arguments"], state["header"]["arguments"]
        differing = [key for key, value in arguments.items() if earlier.get(key) != value]
        if differing:
            key = differing[0]
            raise UserError(
                f"the run in {args.branch_from if branching else args.out} was made with --{key.replace('_', '-')} "
                f"{earlier.get(key)}, not {arguments[key]}: use the same value, or another --out"
            )
        if state["step"] > args.steps:
            raise UserError(f"{args.out} already has {state['step']} steps, more than --steps {args.steps}")
        changed = [key for key, value in self.header.items() if state["header"].get(key) != value]
        if changed:
            raise UserError(
                f"the run in {args.out} was made with another {changed[0].replace('_', ' ')}: use another --out"
            )
        schedule = [args.steps, args.decay_steps]
        if state["step"] > args.steps - args.decay_steps and state["schedule"] != schedule:
            raise UserError(
                f"a decay over the last {args.decay_steps} of {args.steps} steps would have begun before step "
                f"{state['step']}, where {args.out} stands: raise --steps or lower --decay-steps"
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _save(self) -> None:
        """Writes the training state and the EMA weights, once the steps that they hold are known to be finite."""
        self._close_window()
        args = self.args
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "schedule": [args.steps, args.decay_steps],
            "header": self.header,
        }
        save_tensor_file(args.out / STATE_FILE, state)
        self._export()
        self._begin_window()

    def _export(self) -> None:
        """Writes the EMA weights, unless they are there already."""
        if self.weights_path.is_file() and load_checkpoint(self.weights_path).header["step"] == self.step:
            return
        totals = {
            "code_version": self.code_version,
            "step": self.step,
            "images_seen": self.step * self.args.batch_size,
            "training_flop": self.step * self.flop_per_step,
        }
        save_checkpoint(self.weights_path, self.ema_model, {**self.header, **totals})

    def _report(self, stop: StopRequest) -> int:
        args = self.args
        print(
            f"{self.weights_path}: step {self.step:,} of {args.steps:,}, {self.step * args.batch_size:,} images, "
            f"{self.step * self.flop_per_step:.3g} training FLOP, {self.seconds / 60:.1f} minutes of training"
        )
        if self.step == args.steps:
            return 0
        print("paused: the same command goes on from here")
        return 128 + stop.signal_number if stop.signal_number else 0


def load_training_state(path: Path) -> dict:
    state = read_tensor_file(path, "training state", torch.load, weights_only=True, map_location="cpu")
    if (
        not isinstance(state, dict)
        or not {"model", "ema", "optimizer", "step", "seconds", "schedule", "header"} <= state.keys()
    ):
        raise UserError(f"{path} is not a training state of this project")
    return state


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all randomness in one training step."""
    return torch.Generator(device).manual_seed(derive_seed("step", seed, step))
