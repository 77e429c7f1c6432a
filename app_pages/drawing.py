"""Drawing for many visitors at once: all networks run in one thread, a step of a solver at a time.

So a student's single step never waits for another visitor's whole teacher, only for the step that it is at, and memory
does not grow with the number of visitors. The images are those of `sample.py`, to the bit.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import streamlit as st
import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.comparison import Column
from common.device import choose_device, choose_precision
from common.noise import sample_noise
from common.sampling import SamplingSettings, Step, balanced_labels, draw_in_steps


@st.cache_resource(show_spinner=False)
def network_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="networks")


@st.cache_resource(show_spinner=False, max_entries=1000)
def warm_up(sha256: str, _checkpoint: Checkpoint, count: int) -> None:
    """A model's first pass at a batch size takes longer than those that follow: here it is not timed."""
    settings = SamplingSettings("euler", 1)
    shape = _checkpoint.model.config.image_shape
    labels = torch.zeros(count, dtype=torch.long) if _checkpoint.class_names else None
    for _ in steps_in_network_thread(_checkpoint, settings, torch.zeros(count, *shape), labels):
        pass


def steps_in_network_thread(
    checkpoint: Checkpoint, settings: SamplingSettings, noise: Tensor, labels: Tensor | None
) -> Iterator[tuple[Step, float]]:
    """The steps of a solver with fixed steps, on the CPU, and the seconds that each took."""
    precision = choose_precision("auto", choose_device("auto"))
    steps = draw_in_steps(checkpoint.model, noise, labels, settings, precision, checkpoint.guide_model)

    def next_step() -> tuple[Step, float] | None:
        start = time.perf_counter()
        step = next(steps, None)
        return step and (replace(step, state=step.state.cpu()), time.perf_counter() - start)

    while timed := network_thread().submit(next_step).result():
        yield timed


def draw(
    checkpoint: Checkpoint,
    settings: SamplingSettings,
    seed: int,
    count: int,
    classes: Sequence[int],
    watch: Callable[[Step], None] | None = None,
) -> Column:
    """Samples 0 ... count - 1 of a seed. `watch` is called with each step, and its time is not counted."""
    noise = sample_noise(seed, 0, count, checkpoint.model.config.image_shape)
    labels = balanced_labels(classes, 0, count)
    warm_up(checkpoint.sha256, checkpoint, count)
    seconds = 0.0
    for step, took in steps_in_network_thread(checkpoint, settings, noise, labels):
        seconds += took
        if watch:
            watch(step)
    return Column(checkpoint, settings, step.state, labels, step.network_calls, seconds / count)


def path_of(
    checkpoint: Checkpoint, settings: SamplingSettings, noise: Tensor, labels: Tensor | None
) -> list[tuple[float, Tensor]]:
    """The times and states from noise (N, C, H, W) at t = 0 to images at t = 1."""
    steps = steps_in_network_thread(checkpoint, settings, noise, labels)
    return [(0.0, noise), *((step.t, step.state) for step, _ in steps)]
