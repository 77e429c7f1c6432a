"""Distribution matching: against its formula, and where its gradient leads on distributions that are known."""

import pytest
import torch
from conftest import random_network
from torch import nn

from common import score_critic
from common.sampling import SamplingSettings
from common.score_critic import ScoreCritic
from common.training import step_generator

CPU = torch.device("cpu")
SPREAD = 0.2


class NormalFlow(nn.Module):
    """The flow of images whose pixels are N(mean, SPREAD^2), exactly: E[image | x_t] is linear in x_t."""

    def __init__(self, mean: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))

    def forward(self, x, t, labels=None):
        t = t.view(-1, 1, 1, 1)
        gain = SPREAD**2 * t / (SPREAD**2 * t**2 + (1 - t) ** 2)
        return (self.mean + gain * (x - t * self.mean) - x) / (1 - t)


def drawn_images(mean: float, seed: int = 0) -> torch.Tensor:
    return (mean + SPREAD * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).requires_grad_()


@pytest.fixture
def critic(monkeypatch):
    """A critic by a teacher of images around 0.5."""
    monkeypatch.setattr(
        score_critic, "make_optimizer", lambda _, model, rate, __: torch.optim.Adam(model.parameters(), rate)
    )
    monkeypatch.setattr(ScoreCritic, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(ScoreCritic, "WARMUP_STEPS", 100)
    return ScoreCritic(NormalFlow(0.5).requires_grad_(False), None, SamplingSettings(), seed=0)


@pytest.mark.parametrize(("mean", "direction"), [(0.2, 1), (0.9, -1), (0.5, 0)])
def test_the_gradient_leads_to_the_teachers_distribution(mean, direction, critic):
    """Once the fake model has learned the student's; where the two are the same, it is 0."""
    pulls = []
    for step in range(200):
        images = drawn_images(mean, seed=step)
        loss = critic(images, None, step_generator(0, step, CPU))
        loss.backward()
        pulls.append(-images.grad.sum().item())
        critic.zero_grad()
        critic.loss(step).backward()
        critic.update()
    assert critic.fake.mean.item() == pytest.approx(mean, abs=0.03)
    assert pulls[:100] == [0] * 100  # while the fake model warms up
    pull = sum(pulls[150:]) / 50
    assert pull * direction > 0.3 if direction else abs(pull) < 0.05


def test_the_loss_is_that_of_the_guided_teacher_and_the_fake_model(monkeypatch):
    monkeypatch.setattr(ScoreCritic, "WARMUP_STEPS", 0)
    teacher, guide = random_network(seed=0), random_network(seed=1)
    settings = SamplingSettings(guidance_scale=1.5, guide_scale=2.0, guidance_interval=(0.3, 0.7))
    critic = ScoreCritic(teacher, guide, settings, seed=0)
    images = torch.randn(12, 3, 32, 32).requires_grad_()
    labels = torch.arange(12) % 10
    loss = critic(images, labels, step_generator(3, 0, CPU))
    loss.backward()

    generator = step_generator(3, 0, CPU)
    noise = torch.randn(12, 3, 32, 32, generator=generator)
    t = 0.02 + 0.96 * torch.rand(12, generator=generator)
    left = (1 - t)[:, None, None, None]
    guided = ((t >= 0.3) & (t <= 0.7))[:, None, None, None]
    assert 0 < guided.sum() < 12
    with torch.no_grad():
        x = left * noise + (1 - left) * images
        conditional, unconditional, weaker = teacher(x, t, labels), teacher(x, t), guide(x, t, labels)
        more = 0.5 * (conditional - unconditional) + 1.0 * (conditional - weaker)
        teachers = x + left * (conditional + guided * more)
        fakes = x + left * conditional  # the fake model is still the teacher
        difference = (teachers - fakes) / (images - teachers).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert loss.item() == pytest.approx(difference.square().mean().item() / 2, rel=1e-3)
    torch.testing.assert_close(images.grad, -difference / difference.numel(), atol=1e-7, rtol=1e-2)
