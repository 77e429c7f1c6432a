"""What the steps of a training run gave, and how long they took."""

import time

import torch
from torch import Tensor


class StepMeter:
    """Loss, gradient norm and time of a run's steps.

    Fetching values at every step would stall a GPU: they stay where they are until somebody looks. What is not between
    `start` and `look` is not training, and its time does not count.
    """

    def __init__(self):
        self.seconds = 0.0
        self.seconds_at_log = 0.0
        self.window: list[list[float]] = []
        """The loss and gradient norm of each step since the last logged one."""
        self.start()

    def start(self) -> None:
        self.unseen: list[Tensor] = []
        self.clock = time.monotonic()

    def add(self, values: Tensor) -> None:
        """The loss and the gradient's norm of a step as a tensor (2,)."""
        self.unseen.append(values)

    def look(self) -> int | None:
        """Fetches what the steps gave since the start or the last look, and their time.

        Returns None or, where not all of it is finite, how many steps ago that began.
        """
        began = None
        if self.unseen:
            values = torch.stack(self.unseen).float().cpu()  # waits for the device, so the time is of finished steps
            finite = torch.isfinite(values).all(dim=1)
            if not finite.all():
                began = len(values) - int(torch.nonzero(~finite)[0])
            self.window += values.tolist()
        self.seconds += time.monotonic() - self.clock
        self.start()
        return began

    def take_window(self, images_per_step: int) -> dict[str, float]:
        """The means over the steps since the last logged one, of what has been looked at."""
        losses, norms = zip(*self.window, strict=True)
        count = len(self.window)
        self.window = []
        seconds, self.seconds_at_log = self.seconds - self.seconds_at_log, self.seconds
        rate = count * images_per_step / seconds
        return {"loss": sum(losses) / count, "gradient_norm": sum(norms) / count, "images_per_second": rate}

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "seconds_at_log": self.seconds_at_log, "window": self.window}

    def load_state_dict(self, state: dict) -> None:
        """Of a dictionary that may hold more than the meter's own."""
        self.seconds, self.seconds_at_log, self.window = (
            state[name] for name in ("seconds", "seconds_at_log", "window")
        )
