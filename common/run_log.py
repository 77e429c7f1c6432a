"""What a training run leaves for people: `metrics.jsonl`, TensorBoard, preview pictures and the loss curve."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.errors import UserError
from common.files import atomic_write, write_text


class RunLog:
    """The metrics of one run. Opened at step n, it forgets whatever an earlier call logged after step n."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        self.records = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, **values: float) -> None:
        record = {"step": step, **values}
        self.records.append(record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        self.tensorboard.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics file; a last line that a kill cut short is left out.

    Raises UserError for damage elsewhere.
    """
    if not path.is_file():
        return []
    records, lines = [], path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is damaged: mend or remove it") from None
    return records


def draw_loss_curve(records: list[dict], path: Path, title: str) -> None:
    """The training loss, and what was measured on held-out samples, against the steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    held_out = {"linestyle": "--", "marker": "o", "markersize": 4}
    styles = {"loss": {"alpha": 0.6}, "held_out_loss": held_out, "held_out_error": held_out}
    names = {
        "loss": "loss in training",
        "held_out_loss": "on held-out samples (a teacher's: at uniform times), EMA weights",
    }
    names["held_out_error"] = "error of held-out images, EMA weights"
    for name, style in styles.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            style = {"marker": "o", **style} if len(points) == 1 else style
            axes.plot(*zip(*points, strict=True), label=names[name], **style)
    positive = all(value > 0 for line in axes.lines for value in line.get_ydata())  # a critic's loss need not be
    axes.set(title=title, xlabel="training step", ylabel="loss (log scale)" if positive else "loss")
    axes.set_yscale("log" if positive else "linear")
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
