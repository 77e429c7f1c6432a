"""The time convention and the distributions of the training times."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from common import flow


def test_time_zero_is_noise_and_time_one_is_data():
    noise, image = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(flow.interpolate(noise, image, torch.zeros(2)), noise)
    assert torch.equal(flow.interpolate(noise, image, torch.ones(2)), image)


def test_target_velocity_is_the_time_derivative_of_the_interpolation():
    noise, image = torch.randn(3, 3, 4, 4).double(), torch.randn(3, 3, 4, 4).double()
    t, dt = torch.tensor([0.1, 0.5, 0.8]).double(), 1e-3
    difference = flow.interpolate(noise, image, t + dt) - flow.interpolate(noise, image, t - dt)
    torch.testing.assert_close(difference / (2 * dt), flow.target_velocity(noise, image))


def u_shaped_cdf(t):
    rising = np.expm1(4 * t) / math.expm1(4)
    falling = 1 - np.expm1(4 * (1 - t)) / math.expm1(4)
    return (rising + falling) / 2


@pytest.mark.parametrize(
    ("distribution", "cdf"),
    [
        ("uniform", lambda t: t),
        ("logit-normal", lambda t: stats.norm.cdf(np.log(t / (1 - t)))),
        ("u-shaped", u_shaped_cdf),
    ],
)
def test_times_follow_their_distribution(distribution, cdf):
    generator = torch.Generator().manual_seed(0)
    times = flow.sample_times(distribution, 20_000, generator, torch.device("cpu")).double().numpy()
    assert stats.kstest(times, cdf).pvalue > 0.01


def test_unknown_time_distribution_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        flow.sample_times("cosine", 1, torch.Generator(), torch.device("cpu"))
