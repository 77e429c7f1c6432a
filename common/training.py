"""The training loop that all training stages share.

A stage brings a model and a loss; the loop brings the schedule, the optimiser, EMA, the log, and the promise that a run
which was stopped and run again ends bit-identical, on one CPU, to one that never stopped. Randomness is a function of
seed and step, so the step is all that has to be remembered of it.
"""

import time
from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.device import Precision
from common.files import folder_to_oneself
from common.images import save_picture
from common.noise import derive_seed
from common.optimisation import learning_rate_factor
from common.run_log import RunLog, draw_loss_curve, read_metrics
from common.stopping import StopRequest
from common.training_run import TrainingRun
from common.unet import count_values


class Trainer:
    """The loop of a training run.

    `losses(network, step)` yields the terms of the loss of step `step`, scalars, under autocast; all randomness must be
    derived from the run's seed and `step`. Each term is differentiated before the next is computed, so that memory need
    only hold what the largest of them needs. `evaluate(ema_network)` returns what was measured on held-out samples, by
    name. `preview(ema_network)` returns a picture. After each of `snapshot_steps`, the EMA weights also go to a file of
    their own. The run's critic, which `losses` asks, makes a step after each of the network's.
    """

    def __init__(
        self,
        run: TrainingRun,
        losses: Callable[[nn.Module, int], Iterator[Tensor]],
        evaluate: Callable[[nn.Module], dict[str, float]],
        preview: Callable[[nn.Module], Image.Image] | None = None,
        snapshot_steps: Collection[int] = (),
    ):
        self.run, self.args, self.precision, self.critic = run, run.args, run.precision, run.critic
        self.losses, self.evaluate, self.preview = losses, evaluate, preview
        self.snapshot_steps = snapshot_steps
        run.flop_per_step = self._count_flop()
        self.network = torch.compile(run.model) if self.args.compile else run.model

    @property
    def name(self) -> str:
        return self.run.header["stage"]

    def train(self) -> int:
        """Goes on from where the run was, until the last step, the time limit or a signal.

        Returns the script's exit status. Raises UserError where the run cannot go on, or another process trains it.
        """
        with folder_to_oneself(self.args.out):
            self.run.resume()
            if self.run.step < self.args.steps:
                return self._train()
            self.run.complete()
            if not self.loss_curve.is_file():
                self._draw_loss_curve(read_metrics(self.args.out / "metrics.jsonl"))
            print(f"{self.args.out} is finished: {self.run.step:,} steps")
            return 0

    def _train(self) -> int:
        args, run = self.args, self.run
        print(
            f"{self.name}: {count_values(run.model):,} parameters, {run.flop_per_step:.3g} FLOP a step, "
            f"{self.precision.device}, {self.precision.name}, from step {run.step:,} to {args.steps:,} in {args.out}"
        )
        log = RunLog(args.out, run.step)
        stop = StopRequest(args.max_minutes)
        last_save = time.monotonic()
        bar = tqdm(total=args.steps, initial=run.step, unit="step", desc=self.name, smoothing=0.05)
        run.meter.start()

        with stop, bar:
            while run.step < args.steps:
                run.meter.add(self._train_step())
                run.step += 1
                bar.update()
                finished = run.step == args.steps
                if run.step % args.log_every == 0 or finished:
                    run.require_finite_steps()
                    metrics = run.meter.take_window(run.images_per_step)
                    bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {metrics['images_per_second']:.0f} images/s")
                    log.add(run.step, **metrics, **self._progress())
                if run.step % args.evaluate_every == 0 or finished:
                    log.add(run.step, **self._evaluate(), **self._progress())
                if run.step in self.snapshot_steps:
                    run.require_finite()
                    run.save_weights(args.out / "snapshots" / f"step_{run.step:07d}.safetensors")
                    run.meter.start()
                if time.monotonic() - last_save > 60 * args.save_minutes:
                    run.save()
                    last_save = time.monotonic()
                if stop:  # asked only now: however short its time, a leg goes on by one step
                    break
            run.save(and_compact=args.compact_state)

        log.close()
        self._draw_loss_curve(log.records)
        return self._report(stop)

    def _train_step(self) -> Tensor:
        """One step of the optimiser and of the average. Returns the loss and the gradient's norm as a tensor (2,)."""
        args, run = self.args, self.run
        factor = learning_rate_factor(run.step, args.warmup_steps, args.steps, args.decay_steps, run.warmed_up_from)
        for group in run.optimizer.param_groups:
            group["lr"] = args.learning_rate * factor
        run.model.train()
        run.optimizer.zero_grad(set_to_none=True)
        loss = differentiate(self.losses(self.network, run.step), self.precision)
        norm = nn.utils.clip_grad_norm_(run.model.parameters(), args.gradient_clip)
        run.optimizer.step()
        if self.critic:
            self._critic_backward(run.step)
            self.critic.update()
        for average in run.averages.values():
            average.update_parameters(run.model)
        return torch.stack([loss, norm])

    def _critic_backward(self, step: int) -> None:
        self.critic.zero_grad()  # the network's backward pass left gradients here, too
        with self.precision.autocast():
            loss = self.critic.loss(step)
        if loss is not None:
            loss.backward()

    def _evaluate(self) -> dict[str, float]:
        run = self.run
        run.require_finite_steps()
        metrics = {}
        with torch.no_grad(), self.precision.autocast():
            for decay, average in run.averages.items():
                suffix = "" if average.module is run.ema_model else f"_ema_{decay}"
                measured = self.evaluate(average.module.eval())
                metrics |= {f"{name}{suffix}": value for name, value in measured.items()}
        if self.preview:
            save_picture(self.preview(run.ema_model), self.args.out / "previews" / f"step_{run.step:07d}.png")
        run.meter.start()
        return metrics

    def _progress(self) -> dict[str, float]:
        return {"seconds": round(self.run.meter.seconds, 1), "training_flop": float(self.run.training_flop)}

    def _count_flop(self) -> int:
        """Of a step: forward and backward passes of every network in it, a critic's included, but no optimiser."""
        model = deepcopy(self.run.model).train()
        with FlopCounterMode(display=False) as counter:
            differentiate(self.losses(model, 0), self.precision)
            if self.critic:
                self._critic_backward(0)
        return counter.get_total_flops()

    @property
    def loss_curve(self) -> Path:
        return self.args.out / "loss.png"

    def _draw_loss_curve(self, records: list[dict]) -> None:
        draw_loss_curve(records, self.loss_curve, f"{self.name} in {self.args.out.name}")

    def _report(self, stop: StopRequest) -> int:
        args, run = self.args, self.run
        print(
            f"{run.weights_path}: step {run.step:,} of {args.steps:,}, {run.step * run.images_per_step:,} images, "
            f"{run.training_flop:.3g} training FLOP, {run.meter.seconds / 60:.1f} minutes of training"
        )
        if run.step == args.steps:
            return 0
        print("paused: the same command goes on from here")
        return 128 + stop.signal_number if stop.signal_number else 0


def differentiate(losses: Iterator[Tensor], precision: Precision) -> Tensor:
    """Computes each loss, under autocast, and its gradient before the next loss. Returns their sum, without a graph."""
    total = None
    while True:
        with precision.autocast():
            loss = next(losses, None)
        if loss is None:
            return total
        loss.backward()
        total = loss.detach() if total is None else total + loss.detach()


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all randomness in one training step."""
    return torch.Generator(device).manual_seed(derive_seed("step", seed, step))
