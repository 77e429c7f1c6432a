"""The parts of the training loop: schedule, EMA, data order; and that the loss learns the closed form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common import flow, muon
from common.checkpoint import prepare
from common.device import Precision
from common.epoch_order import EpochOrder
from common.optimisation import ema_update, learning_rate_factor, make_optimizer
from common.training import differentiate
from common.unet import UNet, UNetConfig


def test_learning_rate_warms_up_stays_and_decays_to_zero():
    factors = [learning_rate_factor(step, warmup_steps=4, steps=20, decay_steps=5) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert learning_rate_factor(20, 4, 20, 5) == 0
    anew = [learning_rate_factor(step, 4, 20, 5, warmed_up_from=10) for step in range(10, 20)]
    assert anew == [0.25, 0.5, 0.75, *factors[13:]]


def test_prolonging_a_run_without_decay_changes_none_of_its_rates():
    short = [learning_rate_factor(step, 4, 10, 0) for step in range(10)]
    assert short == [learning_rate_factor(step, 4, 30, 10) for step in range(10)]


def test_ema_equals_a_plain_loop_and_batch_norm_statistics_are_averaged_like_weights():
    model = torch.nn.BatchNorm1d(3)
    count = 0
    ema = AveragedModel(model, multi_avg_fn=ema_update(0.9, num_averaged=lambda: count), use_buffers=True)
    expected = None
    for count in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(3))
        model(torch.randn(8, 3) * count)
        ema.update_parameters(model)
        decay = min(0.9, (1 + count) / (10 + count))
        values = torch.stack([model.weight.detach(), model.running_mean, model.running_var])
        expected = values.clone() if expected is None else decay * expected + (1 - decay) * values
        averages = torch.stack([ema.module.weight.detach(), ema.module.running_mean, ema.module.running_var])
        torch.testing.assert_close(averages, expected)
        assert ema.module.num_batches_tracked == count + 1


@pytest.mark.parametrize("momentum", [0.95, 0.6])
def test_muon_makes_the_steps_of_torch_muon_and_adamw_moves_the_rest(momentum, monkeypatch):
    # Iterated until it converges, Newton and Schulz's polynomial makes every singular value 1, in theirs as in ours.
    polynomial, iterations = (1.875, -1.25, 0.375), 25
    monkeypatch.setattr(muon, "NEWTON_SCHULZ", (polynomial,) * iterations)
    torch.manual_seed(0)
    config = UNetConfig(image_size=8, patch_size=1, widths=(16, 32), attention_levels=(1,), embedding_width=16)
    model, twin = (prepare(UNet(config), "cpu") for _ in range(2))
    twin.load_state_dict(model.state_dict())
    ours = make_optimizer("muon", model, 0.01, 0.1, muon_momentum=momentum)
    adamw = make_optimizer("adamw", twin, 0.01, 0.1)
    hidden = {
        f"{name}.weight": nn.Parameter(module.weight.detach().permute(0, 2, 3, 1).flatten(1).clone())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name not in ("stem", "final_conv")
    }
    theirs = torch.optim.Muon(
        hidden.values(),
        lr=0.01,
        weight_decay=0.1,
        momentum=momentum,
        adjust_lr_fn="match_rms_adamw",
        ns_coefficients=polynomial,
        ns_steps=iterations,
    )
    start = {name: matrix.detach().clone() for name, matrix in hidden.items()}
    for seed in range(3):
        gradients = torch.Generator().manual_seed(seed)
        for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=gradients).contiguous(
                memory_format=torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
            )
            other.grad = parameter.grad.clone()
            if name in hidden:
                hidden[name].grad = parameter.grad.permute(0, 2, 3, 1).flatten(1)
        for optimizer in (ours, adamw, theirs):
            optimizer.step()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name in hidden:  # torch's own iterates in bf16
            moved = parameter.permute(0, 2, 3, 1).flatten(1) - start[name]
            difference = moved - (hidden[name] - start[name])
            assert difference.norm() < 0.03 * moved.norm()
        else:
            assert torch.equal(parameter, other)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_orthogonalised_keeps_the_singular_vectors_and_levels_the_values(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -2, min(shape))
    values[-1] = 0
    values[-2] = 1e-5
    (result,) = muon.orthogonalised([7 * left * values @ right])
    levelled = left.T @ result @ right.T
    assert (levelled - levelled.diag().diag()).abs().max() < 1e-3
    large = values > 0.01 * values.pow(4).sum() ** 0.25
    assert large.sum() > 4
    assert levelled.diag()[large].min() > 0.73 and levelled.diag().max() < 1.27
    assert levelled.diag()[-2:].abs().max() < 0.01


def test_the_terms_of_a_loss_are_differentiated_one_after_another():
    x, autocast = nn.Parameter(torch.tensor([1.0, 2.0])), []
    x.register_hook(lambda gradient: autocast.append(torch.is_autocast_enabled("cpu")))

    def losses():
        autocast.append(torch.is_autocast_enabled("cpu"))
        yield x.square().sum()
        assert torch.equal(x.grad, 2 * x)
        yield 3 * x.sum()

    assert differentiate(losses(), Precision(torch.device("cpu"), "bf16")).item() == 5 + 9
    assert torch.equal(x.grad, 2 * x + 3)
    assert autocast == [True, False, False]


def test_every_epoch_visits_every_sample_once_whatever_the_batch_size():
    order = EpochOrder(10, 4, seed=0)
    visited = torch.cat([order.indices(step) for step in range(10)]).tolist()
    epochs = [visited[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert torch.equal(EpochOrder(10, 4, seed=0).indices(7), order.indices(7))
    assert torch.cat([EpochOrder(3, 8, seed=0).indices(step) for step in range(3)]).bincount().tolist() == [8, 8, 8]


def test_the_loss_learns_the_velocity_between_two_gaussians():
    """Images of independent pixels N(m, s^2): the network must find the closed form of `test_solvers`, per pixel."""
    mean, spread, size = 0.5, 0.5, 4
    torch.manual_seed(0)
    config = UNetConfig(image_size=size, patch_size=1, widths=(16,), attention_levels=(), embedding_width=32)
    model = UNet(config)
    steps = 400
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    generator = torch.Generator().manual_seed(1)

    def draw(count):
        noise = torch.randn(count, 3, size, size, generator=generator)
        image = mean + spread * torch.randn(count, 3, size, size, generator=generator)
        t = flow.sample_times("uniform", count, generator, torch.device("cpu"))
        return noise, image, t

    for _ in range(steps):
        noise, image, t = draw(64)
        loss = flow.matching_loss(model, noise, image, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    noise, image, t = draw(1000)
    x, time = flow.interpolate(noise, image, t), t[:, None, None, None]
    variance = (1 - time) ** 2 + (time * spread) ** 2
    exact = mean + (time * spread**2 - (1 - time)) / variance * (x - time * mean)
    with torch.no_grad():
        unexplained = F.mse_loss(model(x, t), exact) / exact.var()
    assert unexplained < 0.03
