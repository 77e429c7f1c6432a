"""Drawing for many visitors at once: all networks run in one thread, a step of a solver at a time, students first.

So a student waits for the step that somebody's teacher is at, and for other students, but never for a whole teacher.
Where the noise is a batch of a seed's first samples, the images are those of `sample.py`, to the bit.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import PriorityQueue

import streamlit as st
import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.comparison import Column
from common.device import choose_device, choose_precision
from common.noise import sample_noise
from common.sampling import SamplingSettings, Step, draw_in_steps, labels_in_turn


class NetworkThread:
    """Calls functions one after the other in a thread of its own, the smallest rank first, then the earliest."""

    def __init__(self):
        self._waiting: PriorityQueue = PriorityQueue()
        self._order = itertools.count()
        threading.Thread(target=self._work, name="networks", daemon=True).start()

    def call(self, rank: int, function: Callable):
        """What `function` returns or raises, once it was its turn."""
        future: Future = Future()
        self._waiting.put((rank, next(self._order), function, future))
        return future.result()

    def _work(self) -> None:
        while True:
            _, _, function, future = self._waiting.get()
            try:
                future.set_result(function())
            except BaseException as error:  # whoever waits for it gets it
                future.set_exception(error)


@st.cache_resource(show_spinner=False)
def network_thread() -> NetworkThread:
    return NetworkThread()


def steps_in_network_thread(
    checkpoint: Checkpoint, settings: SamplingSettings, noise: Tensor, labels: Tensor | None
) -> Iterator[tuple[Step, float]]:
    """The steps of a solver with fixed steps, their states on the CPU, and the seconds that each took."""
    precision = choose_precision("auto", choose_device("auto"))
    steps = draw_in_steps(checkpoint.model, noise, labels, settings, precision, checkpoint.guide_model)

    def next_step() -> tuple[Step, float]:
        start = time.perf_counter()
        step = next(steps)
        step = replace(step, state=step.state.cpu())  # waits for a GPU to finish
        return step, time.perf_counter() - start

    for _ in range(settings.num_steps):
        yield network_thread().call(0 if checkpoint.is_student else 1, next_step)


@st.cache_resource(show_spinner=False, max_entries=1000)
def warm_up(identity: str, _checkpoint: Checkpoint, _settings: SamplingSettings, count: int) -> None:
    """A network's first pass at a batch size takes longer than those that follow: here it is not timed."""
    guidance = (_settings.guidance_scale, (0.0, 1.0), _settings.guide_scale)
    noise = torch.zeros(count, *_checkpoint.model.config.image_shape)
    labels = torch.zeros(count, dtype=torch.long) if _checkpoint.class_names else None
    for _ in steps_in_network_thread(_checkpoint, SamplingSettings("euler", 1, *guidance), noise, labels):
        pass


def draw(
    checkpoint: Checkpoint,
    settings: SamplingSettings,
    seed: int,
    count: int,
    classes: Sequence[int],
    watch: Callable[[Step], None] | None = None,
) -> Column:
    """Samples 0 ... count - 1 of a seed. `watch` is called with each step, and its time is not counted."""
    if checkpoint.guide and not settings.needs_guide:  # it would never be asked
        checkpoint = replace(checkpoint, guide=None)
    noise = sample_noise(seed, 0, count, checkpoint.model.config.image_shape)
    labels = labels_in_turn(classes, 0, count)
    guide = checkpoint.guide.sha256 if checkpoint.guide else ""
    warm_up(checkpoint.sha256 + guide, checkpoint, settings, count)
    seconds = 0.0
    for step, took in steps_in_network_thread(checkpoint, settings, noise, labels):
        seconds += took
        if watch:
            watch(step)
    return Column(checkpoint, settings, step.state, labels, step.network_calls, seconds / count)
