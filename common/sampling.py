"""From a model and seeds to images: guidance, the count of network calls, samples that do not depend on their batch."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from common.device import Precision
from common.errors import UserError
from common.noise import BLOCK_SIZE, sample_noise
from common.solvers import SOLVERS, integrate, integration_steps, time_grid
from common.unet import count_forward_flop

GUIDANCE_INTERVAL = (0.1, 0.8)


@dataclass(frozen=True)
class SamplingSettings:
    """How images are drawn from a model; stored in the headers of pairs and students."""

    solver: str = "adams"
    num_steps: int = 20
    guidance_scale: float = 1.0
    """Classifier-free guidance: w follows v_0 + w (v_c - v_0), of the velocities without and with labels. 1 is none."""
    guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL
    """The times t at which guidance of either kind is applied (Kynkaanniemi et al. 2024); without any, the default."""
    guide_scale: float = 1.0
    """Autoguidance: w adds (w - 1) (v_c - v_g), with the velocity v_g of a second, weaker network. 1 is none."""

    def __post_init__(self):
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if self.solver not in SOLVERS:
            raise UserError(f"there is no solver {self.solver!r}: choose one of {', '.join(SOLVERS)}")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"the guidance interval must satisfy 0 <= from <= to <= 1, not {low} ... {high}")
        if not self.is_guided:  # equal images have equal settings
            object.__setattr__(self, "guidance_interval", GUIDANCE_INTERVAL)

    def guides_at(self, t: float) -> bool:
        """Whether t lies in the guidance interval; its ends belong to it, whatever the rounding of a solver's times."""
        low, high = self.guidance_interval
        return low - 1e-9 <= t <= high + 1e-9

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1 or self.needs_guide

    @property
    def needs_guide(self) -> bool:
        return self.guide_scale != 1

    @property
    def times(self) -> list[float]:
        """Where the steps begin and end: num_steps + 1 times from 0 to 1."""
        return time_grid(self.solver, self.num_steps)

    def to_dict(self) -> dict:
        """As JSON values.

        Optional fields at their defaults are omitted, so files written before those fields existed still compare equal.
        """
        values = asdict(self)
        if not self.needs_guide:
            del values["guide_scale"]
        return values

    def describe(self) -> str:
        """Such as "adams 20, CFG 1.3, autoguidance 1.7 for t in [0.1, 0.8]"; CFG is classifier-free guidance."""
        steps = self.solver if self.solver == "dopri5" else f"{self.solver} {self.num_steps}"
        guidance = [f"CFG {self.guidance_scale:g}"] if self.guidance_scale != 1 else []
        guidance += [f"autoguidance {self.guide_scale:g}"] if self.needs_guide else []
        if not self.is_guided:
            return steps
        low, high = self.guidance_interval
        return f"{', '.join([steps, *guidance])} for t in [{low:g}, {high:g}]"


# How teachers are run by default: without any guidance, guided by themselves without labels, and by a guide.
UNGUIDED = SamplingSettings()
CLASSIFIER_FREE = SamplingSettings(guidance_scale=2.0)
AUTOGUIDED = SamplingSettings(guide_scale=2.0)


class GuidedVelocity:
    """The velocity that a solver follows: the network with labels, and guidance of two kinds, alone or together.

    Classifier-free guidance (Ho and Salimans 2022) extrapolates from the network without labels, autoguidance (Karras
    et al. 2024) from a weaker network with them: v_c + (w - 1) (v_c - v_0) + (w_g - 1) (v_c - v_g).

    `network_calls` counts the network evaluations behind each image, of either network: 1, and 1 more for each kind of
    guidance that is applied. Each has a batch of its own: with both in one, a CPU runs out of cache.
    """

    def __init__(
        self, model: nn.Module, labels: Tensor | None, settings: SamplingSettings, guide: nn.Module | None = None
    ):
        if settings.needs_guide and guide is None:
            raise ValueError("a guide_scale other than 1 needs the guide's network")
        self.model = model
        self.guide = guide
        self.labels = labels
        self.settings = settings
        self.network_calls = self.guide_calls = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Of samples (N, C, H, W) that are all at time t."""
        times = torch.full((len(x),), t, device=x.device)
        conditional = self._conditional(x, times)
        return self._guided(conditional, x, times) if self.settings.guides_at(t) else conditional

    def _conditional(self, x: Tensor, times: Tensor) -> Tensor:
        self.network_calls += 1
        return self.model(x, times, self.labels)

    def _guided(self, conditional: Tensor, x: Tensor, times: Tensor) -> Tensor:
        settings, velocity = self.settings, conditional
        if settings.guidance_scale != 1:
            self.network_calls += 1
            velocity = torch.lerp(self.model(x, times), conditional, settings.guidance_scale)
        if settings.needs_guide:
            self.network_calls += 1
            self.guide_calls += 1
            weaker = self.guide(x, times, self.labels)
            velocity = velocity + (settings.guide_scale - 1) * (conditional - weaker)
        return velocity


@dataclass
class Generated:
    """A batch of samples with everything that a stage keeps of them, on the sampler's device."""

    noise: Tensor
    """(N, C, H, W), standard normal."""
    images: Tensor
    """(N, C, H, W), float, about [-1, 1], not clipped."""
    states: list[Tensor]
    """The states at the times that were asked for, each like `images`."""
    labels: Tensor | None
    """(N,), int64; None without labels."""
    network_calls: int
    guide_calls: int
    """Those of the network calls that were the guide's."""


@torch.no_grad()
def draw(
    model: nn.Module,
    noise: Tensor,
    labels: Tensor | None,
    settings: SamplingSettings,
    keep_times: Sequence[float] = (),
    precision: Precision | None = None,
    guide: nn.Module | None = None,
) -> Generated:
    """Integrates noise (N, C, H, W) to images on the device of `model`. Without `precision`, in fp32.

    `guide`: the weaker network of autoguidance, for settings with a `guide_scale`.
    """
    noise, labels = _on_device_of(model, noise, labels)
    velocity = GuidedVelocity(model, labels, settings, guide)
    with _autocast(precision):
        images, states = integrate(velocity, noise, settings.solver, settings.times, keep_times)
    return Generated(noise, images, states, labels, velocity.network_calls, velocity.guide_calls)


@dataclass(frozen=True)
class Step:
    """Where a batch is after a step of the solver."""

    number: int
    """1 for the first."""
    t: float
    state: Tensor
    """(N, C, H, W), on the sampler's device."""
    network_calls: int
    """Those behind each sample so far."""


@torch.no_grad()
def draw_in_steps(
    model: nn.Module,
    noise: Tensor,
    labels: Tensor | None,
    settings: SamplingSettings,
    precision: Precision | None = None,
    guide: nn.Module | None = None,
) -> Iterator[Step]:
    """`draw`, yielding after each step of a fixed-step solver; the last state is the images of `draw`, to the bit.

    Between steps, gradient mode and autocast are the caller's: one thread can advance several of these in turn.

    Raises ValueError for `dopri5`.
    """
    noise, labels = _on_device_of(model, noise, labels)
    velocity = GuidedVelocity(model, labels, settings, guide)

    def autocast_velocity(x: Tensor, t: float) -> Tensor:
        with _autocast(precision):
            return velocity(x, t)

    times = settings.times
    states = integration_steps(autocast_velocity, noise, settings.solver, times)
    for number, state in enumerate(states, start=1):
        yield Step(number, times[number], state, velocity.network_calls)


def _on_device_of(model: nn.Module, noise: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    device = next(model.parameters()).device
    noise = noise.to(device).contiguous(memory_format=torch.channels_last)
    return noise, None if labels is None else labels.to(device)


def _autocast(precision: Precision | None) -> AbstractContextManager:
    return precision.autocast() if precision else nullcontext()


def draw_blocks(
    model: nn.Module,
    seed: int,
    start: int,
    count: int,
    classes: Sequence[int],
    settings: SamplingSettings,
    *,
    keep_times: Sequence[float] = (),
    precision: Precision | None = None,
    batch_size: int = BLOCK_SIZE,
    stream: str = "samples",
    guide: nn.Module | None = None,
) -> Iterator[Generated]:
    """Samples start ... start + count - 1 of a seed, in batches.

    Sample i has the noise that `sample_noise` gives it, and class `classes[i % len(classes)]`, whatever the batches.
    An empty `classes` draws without labels.
    """
    for first in range(start, start + count, batch_size):
        size = min(batch_size, start + count - first)
        noise = sample_noise(seed, first, size, model.config.image_shape, stream)
        yield draw(model, noise, labels_in_turn(classes, first, size), settings, keep_times, precision, guide)


def flop_behind(batches: Sequence[Generated], model: nn.Module, guide: nn.Module | None = None) -> int:
    """Floating-point operations of all network calls that made these batches, the guide's included."""
    own_calls = sum(len(batch.images) * (batch.network_calls - batch.guide_calls) for batch in batches)
    guide_calls = sum(len(batch.images) * batch.guide_calls for batch in batches)
    return own_calls * count_forward_flop(model) + (guide_calls * count_forward_flop(guide) if guide else 0)


def labels_in_turn(classes: Sequence[int], start: int, count: int) -> Tensor | None:
    """The classes int64 (count,) of samples start ... start + count - 1: those given, in turn. None without classes."""
    if not classes:
        return None
    return torch.tensor([classes[index % len(classes)] for index in range(start, start + count)])
