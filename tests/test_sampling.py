"""Noise, guidance, the counting of network calls, and independence from the batch size."""

import pytest
import torch
from conftest import random_network
from scipy import stats

from common.device import Precision
from common.images import to_uint8
from common.noise import derive_seed, sample_noise
from common.sampling import GuidedVelocity, SamplingSettings, draw, draw_blocks, draw_in_steps, labels_in_turn
from common.solvers import time_grid

SHAPE = (3, 8, 8)
CPU_CLASSES = range(10)


def test_noise_of_a_sample_does_not_depend_on_where_a_batch_starts():
    everything = sample_noise(3, 0, 200, SHAPE)
    assert torch.equal(sample_noise(3, 61, 70, SHAPE), everything[61:131])
    assert torch.equal(sample_noise(3, 199, 1, SHAPE), everything[199:])
    assert len(sample_noise(3, 5, 0, SHAPE)) == 0


def test_noise_is_standard_normal_and_exact_in_half_precision():
    noise = sample_noise(0, 0, 500, SHAPE)
    assert stats.kstest(noise.flatten().numpy()[:20_000], "norm").pvalue > 0.01
    assert torch.equal(noise.half().float(), noise)


def test_seeds_and_streams_give_unrelated_noise():
    pieces = [sample_noise(seed, 0, 64, SHAPE, stream) for seed in (0, 1) for stream in ("samples", "pairs")]
    for first in range(4):
        for second in range(first):
            correlation = (pieces[first] * pieces[second]).mean()
            assert abs(correlation) < 0.05
    assert derive_seed("a", 1, 2) != derive_seed("a", 2, 1)


def test_without_guidance_its_interval_is_no_setting():
    assert SamplingSettings("heun", 4, guidance_interval=(0.3, 0.5)) == SamplingSettings("heun", 4)
    assert SamplingSettings("heun", 4, 2.0, (0.3, 0.5)) != SamplingSettings("heun", 4, 2.0)


@pytest.mark.parametrize(
    ("t", "guided"), [(0.0, False), (0.1, True), (0.5, True), (0.8, True), (0.7 + 0.1 + 1e-15, True), (0.9, False)]
)
def test_guidance_extrapolates_within_its_interval_and_counts_both_calls(t, guided):
    model, x, labels = random_network(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    velocity = GuidedVelocity(model, labels, SamplingSettings(guidance_scale=3.0, guidance_interval=(0.1, 0.8)))
    times = torch.full((4,), t)
    with torch.no_grad():
        conditional, unconditional = model(x, times, labels), model(x, times)
        expected = unconditional + 3.0 * (conditional - unconditional) if guided else conditional
        torch.testing.assert_close(velocity(x, t), expected, atol=1e-5, rtol=1e-4)
    assert velocity.network_calls == (2 if guided else 1)


@pytest.mark.parametrize(("guidance_scale", "calls"), [(1.0, 2), (3.0, 3)])
def test_a_guide_extrapolates_from_the_weaker_network(guidance_scale, calls):
    model, guide = random_network(seed=0), random_network(seed=1)
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    settings = SamplingSettings(guidance_scale=guidance_scale, guide_scale=2.5)
    velocity = GuidedVelocity(model, labels, settings, guide)
    times = torch.full((4,), 0.5)
    with torch.no_grad():
        conditional, unconditional, weaker = model(x, times, labels), model(x, times), guide(x, times, labels)
        expected = conditional + (guidance_scale - 1) * (conditional - unconditional) + 1.5 * (conditional - weaker)
        torch.testing.assert_close(velocity(x, 0.5), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(velocity(x, 0.9), model(x, torch.full((4,), 0.9), labels))
    assert (velocity.network_calls, velocity.guide_calls) == (calls + 1, 1)


def test_a_guide_that_is_the_model_itself_changes_nothing():
    model = random_network()
    plain, guided = (
        next(draw_blocks(model, 0, 0, 5, CPU_CLASSES, SamplingSettings("heun", 4, guide_scale=scale), guide=model))
        for scale in (1.0, 2.0)
    )
    torch.testing.assert_close(plain.images, guided.images)
    assert guided.guide_calls > 0 == plain.guide_calls


def test_network_calls_of_a_guided_solver_are_those_of_the_network():
    model, evaluations = random_network(), []
    model.register_forward_hook(lambda module, inputs, output: evaluations.append(len(inputs[0]) / 5))
    settings = SamplingSettings("heun", 10, guidance_scale=2.0, guidance_interval=(0.1, 0.8))
    (batch,) = draw_blocks(model, 0, 0, 5, CPU_CLASSES, settings)
    # 10 steps evaluate at 0, 0.1 ... 0.9 and at 0.1 ... 1.0: of these 20 times, 8 + 8 lie within the interval.
    assert batch.network_calls == sum(evaluations) == 20 + 16


def test_images_do_not_depend_on_the_batch_size():
    model, settings = random_network(), SamplingSettings("heun", 4, guidance_scale=2.0)
    drawn = {}
    for batch_size in (64, 7):
        batches = list(draw_blocks(model, 1, 3, 20, CPU_CLASSES, settings, batch_size=batch_size))
        drawn[batch_size] = torch.cat([batch.images for batch in batches])
        assert torch.cat([batch.labels for batch in batches]).tolist() == [index % 10 for index in range(3, 23)]
    difference = to_uint8(drawn[64]).int() - to_uint8(drawn[7]).int()
    assert difference.abs().max() <= 1
    repeated = torch.cat([batch.images for batch in draw_blocks(model, 1, 3, 20, CPU_CLASSES, settings)])
    assert torch.equal(repeated, drawn[64])


@pytest.mark.parametrize(("solver", "num_steps"), [("edm-heun", 4), ("adams", 8)])
def test_steps_end_at_the_images_that_drawing_at_once_gives(solver, num_steps):
    model = random_network()
    noise, labels = sample_noise(0, 0, 5, model.config.image_shape), labels_in_turn(CPU_CLASSES, 0, 5)
    settings = SamplingSettings(solver, num_steps, guidance_scale=2.0)
    times = time_grid(solver, num_steps)[1:]
    for precision in (None, Precision(torch.device("cpu"), "bf16")):
        whole = draw(model, noise, labels, settings, keep_times=times[:-1], precision=precision)
        steps = []
        for step in draw_in_steps(model, noise, labels, settings, precision):
            assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")  # between the steps
            steps.append(step)
        assert [step.t for step in steps] == times
        assert [step.number for step in steps] == list(range(1, num_steps + 1))
        assert all(
            torch.equal(step.state, state) for step, state in zip(steps, [*whole.states, whole.images], strict=True)
        )
        assert steps[-1].network_calls == whole.network_calls > steps[0].network_calls
    with pytest.raises(ValueError, match="fixed steps"):
        next(draw_in_steps(model, noise, labels, SamplingSettings("dopri5")))


def test_uint8_rounds_to_nearest_and_clips():
    values = torch.tensor([-2.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.999, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
