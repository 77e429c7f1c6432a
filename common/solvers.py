"""Solvers of the flow's ODE dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from common.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]
"""v(x, t): the velocity at states x (N, ...) and one time t in [0, 1] for all of them."""


def euler_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    return x + dt * velocity(x, t)


def midpoint_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    half_way = x + dt / 2 * velocity(x, t)
    return x + dt * velocity(half_way, t + dt / 2)


def heun_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    start = velocity(x, t)
    end = velocity(x + dt * start, t + dt)
    return x + dt / 2 * (start + end)


def edm_heun_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    """Heun's step, but Euler's where it ends at t = 1 (Karras et al. 2022, algorithm 1).

    Hardly any training time lies close to t = 1, so the network's velocity there is noise: asking for it more than
    doubles the FID of a briefly trained teacher (docs/results.md).
    """
    return euler_step(velocity, x, t, dt) if t + dt > 1 - 1e-9 else heun_step(velocity, x, t, dt)


def rk4_step(velocity: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    k1 = velocity(x, t)
    k2 = velocity(x + dt / 2 * k1, t + dt / 2)
    k3 = velocity(x + dt / 2 * k2, t + dt / 2)
    k4 = velocity(x + dt * k3, t + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


RUNGE_KUTTA_STEPS = {
    "edm-heun": edm_heun_step,
    "heun": heun_step,
    "euler": euler_step,
    "midpoint": midpoint_step,
    "rk4": rk4_step,
}
FIXED_STEP_SOLVERS = ("adams", *RUNGE_KUTTA_STEPS)
SOLVERS = (*FIXED_STEP_SOLVERS, "dopri5")

DOPRI5_TOLERANCE = 1e-5
"""Relative and absolute tolerance, as in the rectified-flow evaluations of Liu et al. 2022. Only fp32 resolves it."""


def time_grid(solver: str, num_steps: int) -> list[float]:
    """The num_steps + 1 times between a solver's steps: equally spaced, but for `adams` closer together at both ends.

    t = (1 + s (0.85 + 0.75 s^2 - 0.6 s^4)) / 2 for equally spaced s in [-1, 1], with coefficients chosen by hand: a
    tenth of the equal spacing at the very ends, 1.27 times it at most, about t = 0.2 and 0.8. The times 1/4, 1/2 and
    3/4, where a four-step student's steps begin, are kept.
    """
    times = [index / num_steps for index in range(num_steps + 1)]
    if solver != "adams":
        return times
    centred = [2 * time - 1 for time in times]
    return [(1 + s * (0.85 + 0.75 * s**2 - 0.6 * s**4)) / 2 for s in centred]


def grid_index(time: float, times: Sequence[float]) -> int | None:
    """The k for which times[k] is `time` up to rounding, or None where there is none."""
    return next((index for index, other in enumerate(times) if abs(other - time) < 1e-9), None)


def nearest_times(wanted: Sequence[float], times: Sequence[float]) -> list[float]:
    """For each time that is wanted, the nearest of `times`. Raises UserError where two of them have the same."""

    if len(times) < len(wanted):
        raise UserError(f"{len(times) + 1} steps do not pass through {len(wanted)} times between 0 and 1")

    def nearest_to(time: float) -> float:
        nearest = min(times, key=lambda other: abs(other - time))
        return time if abs(nearest - time) < 1e-9 else nearest  # 1/4 is 1/4, whatever the rounding of the grid

    nearest = [nearest_to(time) for time in wanted]
    if len(set(nearest)) < len(nearest):
        raise UserError(
            f"t = {in_words(wanted)} are too close together: the times to choose from are {in_words(times)}"
        )
    return nearest


def in_words(times: Sequence[float]) -> str:
    """The times as text, to three decimals: "0.25, 0.5, 0.75"."""
    return ", ".join(f"{time:.3f}".rstrip("0").rstrip(".") for time in times)


def integrate(
    velocity: Velocity,
    noise: Tensor,
    solver: str,
    times: Sequence[float],
    keep_times: Sequence[float] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Follows the flow from `noise` at `times[0]` = 0 to `times[-1]` = 1 with a step between each two of `times`.

    Returns the states at t = 1 and, in order, those at `keep_times`, each of which must be one of `times`: nothing is
    interpolated. `dopri5` (Dormand and Prince 1980, by torchdiffeq) chooses its own steps, ignores `times` and keeps
    no states.

    Raises ValueError for an unknown solver, or a state that it cannot keep.
    """
    if solver == "dopri5":
        if keep_times:
            raise ValueError("dopri5 keeps no states on the way")
        return _integrate_adaptively(velocity, noise), []
    kept_indices = [grid_index(time, times) for time in keep_times]
    if None in kept_indices:
        raise ValueError(f"the steps do not pass through every one of the times {tuple(keep_times)}")

    x, states = noise, {}
    for index, x in enumerate(integration_steps(velocity, noise, solver, times), start=1):
        if index in kept_indices:
            states[index] = x
    return x, [states[index] for index in kept_indices]


def integration_steps(velocity: Velocity, noise: Tensor, solver: str, times: Sequence[float]) -> Iterator[Tensor]:
    """The states at all of `times` but the first. Raises ValueError for other than a fixed-step solver."""
    if solver == "adams":
        yield from _adams_steps(velocity, noise, times)
        return
    if solver not in RUNGE_KUTTA_STEPS:
        raise ValueError(f"{solver!r} is no solver with fixed steps")
    step, x = RUNGE_KUTTA_STEPS[solver], noise
    for t, end in pairwise(times):
        x = step(velocity, x, t, end - t)
        yield x


def _adams_steps(velocity: Velocity, noise: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """The second-order methods of Adams as predictor and corrector, with one evaluation a step.

    Adams-Bashforth extrapolates to the next time; the velocity there corrects this step by the trapezoidal rule, and
    serves the next one (PEC mode: Hairer, Norsett and Wanner 1993, III.1; UniPC, Zhao et al. 2023, does the like). The
    state at t = 1 stays as predicted: nothing is evaluated there, see `edm_heun_step`.

    Where guidance begins or ends the velocity jumps: there the order is one, as it is with every solver that does not
    stop at the jump.
    """
    state = predicted = noise
    before = None
    for index, (t, end) in enumerate(pairwise(times)):
        here = velocity(predicted, t)
        dt = end - t
        slope = here
        if before is not None:
            last_dt = t - times[index - 1]
            state = state + last_dt / 2 * (before + here)
            yield state
            slope = here + dt / (2 * last_dt) * (here - before)
        predicted = state + dt * slope
        before = here
    yield predicted


def _integrate_adaptively(velocity: Velocity, noise: Tensor) -> Tensor:
    from torchdiffeq import odeint

    times = torch.tensor([0.0, 1.0], device=noise.device)
    states = odeint(
        lambda t, x: velocity(x, float(t)),
        noise,
        times,
        method="dopri5",
        rtol=DOPRI5_TOLERANCE,
        atol=DOPRI5_TOLERANCE,
        options={"step_t": times[1:]},  # the last step ends at t = 1 exactly: nothing is evaluated beyond
    )
    return states[-1]
