"""What a run leaves for people to look at."""

import warnings

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.run_log import RunLog, draw_loss_curve, read_metrics


def test_a_metrics_file_loses_nothing_but_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        RunLog(tmp_path, step=3)
    assert path.read_text().endswith('{"step": 3}\n')


def test_a_loss_below_zero_is_drawn_too(tmp_path):
    """As a discriminator's may be: not on a logarithmic axis, which would leave it out."""
    records = [{"step": step, "loss": loss} for step, loss in ((1, -1.0), (2, -3.0), (3, -2.0))]
    with warnings.catch_warnings(action="error"):
        draw_loss_curve(records, tmp_path / "below.png", "run")
        draw_loss_curve([record | {"loss": -record["loss"]} for record in records], tmp_path / "above.png", "run")
    below, above = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("below.png", "above.png"))
    blue = [(picture[..., 2] > picture[..., 0] + 40).sum() for picture in (below, above)]
    assert blue[0] > 0.5 * blue[1] > 0
