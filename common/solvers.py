"""Solvers of the flow's ODE dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

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


FIXED_STEP_SOLVERS = {
    "edm-heun": edm_heun_step,
    "heun": heun_step,
    "euler": euler_step,
    "midpoint": midpoint_step,
    "rk4": rk4_step,
}
SOLVERS = (*FIXED_STEP_SOLVERS, "dopri5")

DOPRI5_TOLERANCE = 1e-5
"""Relative and absolute tolerance, as in the rectified-flow evaluations of Liu et al. 2022."""


def grid_index(time: float, num_steps: int) -> int | None:
    """The k for which k / num_steps is `time`, or None where the equally spaced grid does not hold it."""
    index = round(time * num_steps)
    return index if abs(index - time * num_steps) < 1e-9 else None


def integrate(
    velocity: Velocity,
    noise: Tensor,
    solver: str,
    num_steps: int,
    keep_times: Sequence[float] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Follows the flow from `noise` at t = 0 to t = 1 in `num_steps` equal steps.

    Returns the states at t = 1 and, in order, those at `keep_times`. The fixed-step solvers keep a time only where
    their grid holds it exactly (nothing is interpolated). `dopri5` (Dormand and Prince 1980, by torchdiffeq) chooses
    its own steps and ignores `num_steps`.

    Raises ValueError for an unknown solver, or a kept time that is not on the grid.
    """
    if solver == "dopri5":
        return _integrate_adaptively(velocity, noise, keep_times)
    kept_indices = [grid_index(time, num_steps) for time in keep_times]
    if None in kept_indices:
        raise ValueError(f"{num_steps} equal steps do not pass through every one of the times {tuple(keep_times)}")

    x, states = noise, {}
    for index, x in enumerate(integration_steps(velocity, noise, solver, num_steps), start=1):
        if index in kept_indices:
            states[index] = x
    return x, [states[index] for index in kept_indices]


def integration_steps(velocity: Velocity, noise: Tensor, solver: str, num_steps: int) -> Iterator[Tensor]:
    """The states after each of `num_steps` equal steps. Raises ValueError for other than a fixed-step solver."""
    if solver not in FIXED_STEP_SOLVERS:
        raise ValueError(f"{solver!r} is no solver with fixed steps")
    step, x = FIXED_STEP_SOLVERS[solver], noise
    for index in range(num_steps):
        x = step(velocity, x, index / num_steps, 1 / num_steps)
        yield x


def _integrate_adaptively(velocity, noise, keep_times):
    from torchdiffeq import odeint

    times = torch.tensor([0.0, *keep_times, 1.0], device=noise.device)
    states = odeint(
        lambda t, x: velocity(x, float(t)),
        noise,
        times,
        method="dopri5",
        rtol=DOPRI5_TOLERANCE,
        atol=DOPRI5_TOLERANCE,
        options={"step_t": times[1:]},  # steps end at these times exactly: nothing is evaluated after t = 1
    )
    return states[-1], list(states[1:-1])
