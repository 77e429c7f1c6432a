"""Distribution matching: the teacher's flow against that of a second network, trained on the student's images."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import flow
from common.noise import derive_seed
from common.optimisation import make_optimizer
from common.sampling import GuidedVelocity, SamplingSettings
from common.training import step_generator
from common.unet import UNet


class ScoreCritic(nn.Module):
    """Distribution matching distillation (DMD, Yin et al. 2024, section 3.2), for velocities.

    Noise is added to the student's images, and two networks predict the images behind it: the teacher, guided (the
    "real" model), and a copy of it that is trained on the student's images (the "fake" model). The difference of their
    predictions is the direction in which the divergence between the student's distribution and the teacher's falls. No
    image needs to match a particular one of the teacher's, so the student need not average over what it cannot resolve.
    """

    FIRST_TIME, LAST_TIME = 0.02, 0.98
    """Of the noised images; at the end of the flow both predictions are the image itself."""
    LEARNING_RATE, WEIGHT_DECAY = 5e-4, 0.01
    WARMUP_STEPS = 200
    """In which the fake model learns and the loss is 0: at first it is the teacher without guidance. They cost as much
    as the later ones."""
    setup_flop = 0

    def __init__(self, teacher: UNet, guide: UNet | None, settings: SamplingSettings, seed: int):
        """`settings`: how the teacher is guided, with `guide` if they need one."""
        super().__init__()
        self.frozen, self.settings, self.seed = (teacher, guide), settings, seed  # a tuple is no part of the state
        self.fake = deepcopy(teacher).requires_grad_()
        self.optimizer = make_optimizer("muon", self.fake, self.LEARNING_RATE, self.WEIGHT_DECAY)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.latest: tuple[Tensor, Tensor | None] | None = None

    def forward(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A scalar loss of the student's images (N, C, H, W), of classes (N,).

        Half the mean squared distance to a target, which is the image moved by the difference of the predictions over
        the mean absolute error of the teacher's (DMD).
        """
        self.latest = images.detach(), labels
        with torch.no_grad():
            t, x = self._noised(images, generator)
            (teacher, guide), left = self.frozen, flow.per_sample(1 - t, images)
            real_velocity = GuidedVelocity(teacher, labels, self.settings, guide).at_times(x, t)
            difference = left * (real_velocity - self.fake(x, t, labels))
            scale = (images - (x + left * real_velocity)).abs().mean(dim=(1, 2, 3), keepdim=True)
            target = images + difference / scale
        return (self.updates >= self.WARMUP_STEPS) * F.mse_loss(images, target) / 2

    def loss(self, step: int) -> Tensor:
        """The fake model's: flow matching on the student's latest images."""
        images, labels = self.latest
        generator = step_generator(derive_seed("critic", self.seed), step, images.device)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        t = flow.sample_times("uniform", len(images), generator, images.device)
        return flow.matching_loss(self.fake, noise, images, t, labels)

    def update(self) -> None:
        self.optimizer.step()
        self.updates += 1

    def _noised(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (N,), and the images as they are at these, each with noise of its own."""
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        share = flow.sample_times("uniform", len(images), generator, images.device)
        t = self.FIRST_TIME + (self.LAST_TIME - self.FIRST_TIME) * share
        return t, flow.interpolate(noise, images, t)

    def get_extra_state(self) -> dict:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)
