"""Solvers against the rectified flow between two Gaussians, whose velocity and flow map have closed forms.

With x0 ~ N(0, 1) and x1 ~ N(m, s^2) independent, x_t ~ N(t m, V_t) with V_t = (1 - t)^2 + t^2 s^2, so that

    v(x, t) = m + (t s^2 - (1 - t)) / V_t (x - t m)        and        x_t = t m + sqrt(V_t) x_0.
"""

import math

import pytest
import torch

from common.errors import UserError
from common.solvers import FIXED_STEP_SOLVERS, grid_index, integrate, nearest_times, time_grid

MEAN, SPREAD = 1.5, 0.5


def variance(t):
    return (1 - t) ** 2 + (t * SPREAD) ** 2


class GaussianVelocity:
    def __init__(self):
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return MEAN + (t * SPREAD**2 - (1 - t)) / variance(t) * (x - t * MEAN)


def flow_map(noise, t):
    return t * MEAN + math.sqrt(variance(t)) * noise


NOISE = torch.linspace(-2, 2, 9).double()


def error(solver, num_steps):
    return (
        (integrate(GaussianVelocity(), NOISE, solver, time_grid(solver, num_steps))[0] - flow_map(NOISE, 1.0))
        .abs()
        .max()
        .item()
    )


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("midpoint", 3), ("heun", 2), ("edm-heun", 2), ("adams", 2), ("rk4", 4)]
)
def test_order_of_convergence_on_the_gaussian_flow(solver, order):
    """The midpoint rule does better than its order here: V_t is quadratic in t, and its leading error term vanishes."""
    measured = math.log2(error(solver, 128) / error(solver, 256))
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("edm-heun", 2), ("adams", 2), ("rk4", 4)]
)
def test_order_of_convergence_on_the_logistic_equation(solver, order):
    """dx/dt = x (1 - x), whose solution is 1 / (1 + (1/x0 - 1) e^{-t})."""
    start = torch.linspace(0.1, 0.4, 5).double()
    exact = 1 / (1 + (1 / start - 1) * math.exp(-1))
    grids = [time_grid(solver, num_steps) for num_steps in (32, 64)]
    errors = [
        (integrate(lambda x, t: x * (1 - x), start, solver, grid)[0] - exact).abs().max().item() for grid in grids
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "calls_per_step"), [("euler", 1), ("adams", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_velocity_calls(solver, calls_per_step):
    velocity = GaussianVelocity()
    integrate(velocity, NOISE, solver, time_grid(solver, 7))
    assert velocity.calls == 7 * calls_per_step


def test_edm_heun_is_heun_but_never_asks_for_the_velocity_at_the_end():
    times = []

    def velocity(x, t):
        times.append(t)
        return GaussianVelocity()(x, t)

    end, (before,) = integrate(velocity, NOISE, "edm-heun", time_grid("edm-heun", 8), keep_times=(0.875,))
    assert len(times) == 15 and max(times) == 0.875
    (textbook,) = integrate(GaussianVelocity(), NOISE, "heun", time_grid("heun", 8), keep_times=(0.875,))[1]
    torch.testing.assert_close(before, textbook)
    torch.testing.assert_close(end, before + GaussianVelocity()(before, 0.875) / 8)


def test_a_step_of_adams_is_extrapolation_and_then_the_trapezoidal_rule():
    """Worked out by hand for v = x + t on the grid's own times, and nothing is asked for at t = 1."""
    evaluated = []

    def velocity(x, t):
        evaluated.append(t)
        return x + t

    start = torch.ones(1).double()
    _, t1, t2, _ = times = time_grid("adams", 3)
    v0 = 1.0
    v1 = (1 + t1 * v0) + t1
    x1 = 1 + t1 / 2 * (v0 + v1)
    v2 = x1 + (t2 - t1) * (v1 + (t2 - t1) / (2 * t1) * (v1 - v0)) + t2
    x2 = x1 + (t2 - t1) / 2 * (v1 + v2)
    x3 = x2 + (1 - t2) * (v2 + (1 - t2) / (2 * (t2 - t1)) * (v2 - v1))
    end, states = integrate(velocity, start, "adams", times, times[1:3])
    assert [state.item() for state in (*states, end)] == pytest.approx([x1, x2, x3])
    assert evaluated == times[:3]
    assert integrate(velocity, start, "adams", [0, 1])[0].item() == 2  # Euler's step
    _, half, _ = time_grid("adams", 2)
    v1 = (1 + half) + half
    x1 = 1 + half / 2 * (1 + v1)
    assert integrate(velocity, start, "adams", [0, half, 1])[0].item() == pytest.approx(x1 + half * (v1 + (v1 - 1) / 2))


def test_the_grid_of_adams_is_denser_at_both_ends_and_keeps_the_quarters():
    times = time_grid("adams", 20)
    assert (times[0], times[-1]) == (0, 1)
    assert [times[index] for index in (5, 10, 15)] == pytest.approx([0.25, 0.5, 0.75], abs=1e-12)
    steps = torch.tensor(times).diff()
    assert (steps > 0).all()
    assert steps[0] < 0.5 / 20 and steps[-1] < 0.5 / 20 and steps.max() < 1.3 / 20
    assert times == pytest.approx([1 - time for time in reversed(times)])


def test_adaptive_solver_reaches_its_tolerance():
    assert error("dopri5", 1) < 1e-4


@pytest.mark.parametrize("solver", FIXED_STEP_SOLVERS)
def test_kept_states_lie_on_the_trajectory(solver):
    times = (0.25, 0.5, 0.75)
    _, states = integrate(GaussianVelocity(), NOISE, solver, time_grid(solver, 400), keep_times=times)
    for time, state in zip(times, states, strict=True):
        torch.testing.assert_close(state, flow_map(NOISE, time), atol=1e-2 if solver == "euler" else 1e-4, rtol=0)


def test_a_time_that_is_not_on_the_grid_is_refused():
    for solver in ("euler", "adams"):
        assert grid_index(0.75, time_grid(solver, 20)) == 15
        assert grid_index(0.75, time_grid(solver, 18)) is None
        with pytest.raises(ValueError, match="do not pass through"):
            integrate(GaussianVelocity(), NOISE, solver, time_grid(solver, 18), keep_times=(0.75,))
    with pytest.raises(ValueError, match="dopri5 keeps no states"):
        integrate(GaussianVelocity(), NOISE, "dopri5", [0, 1], keep_times=(0.75,))


def test_the_nearest_times_are_taken_and_none_twice():
    assert nearest_times([0.25, 0.6], [0.1, 0.25 + 1e-12, 0.55, 0.7]) == [0.25, 0.55]
    with pytest.raises(UserError, match=r"t = 0.5, 0.6 are too close together: .* 0.55"):
        nearest_times([0.5, 0.6], [0.1, 0.55])


def test_the_adaptive_solver_stays_within_the_flow():
    times = []

    def velocity(x, t):
        times.append(t)
        return GaussianVelocity()(x, t)

    integrate(velocity, NOISE, "dopri5", [0, 1])
    assert min(times) >= 0 and max(times) <= 1
