"""The search for a network: what it trains, what it writes, and that it never does the same twice."""

import json
import shlex
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_CONFIG

from benchmarks import architecture_search, stage_scripts
from benchmarks.architecture_page import guidance_cells, page
from common.errors import UserError
from common.results import CHOOSING_SEED
from common.sampling import SamplingSettings


def test_a_variant_is_trained_for_the_flop_asked_for_and_only_once(run_script, image_folder, tmp_path, monkeypatch):
    def in_this_process(command):
        result = run_script(*command)
        assert result.status == 0, result.err

    monkeypatch.setattr(stage_scripts, "run_script", in_this_process)
    monkeypatch.setattr("benchmarks.architecture_variants.STARTING_NETWORK", SMALL_CONFIG)
    rows, budget = tmp_path / "rows.jsonl", 2e10
    arguments = ("--images", image_folder, "--flop", budget, "--rows", rows, "--out", tmp_path / "runs")
    result = run_script("benchmarks/architecture_search.py", *arguments, "--variants", "batch 128")
    assert result.status == 0, result.err
    written = rows.read_bytes()
    row = json.loads(written)
    assert abs(row["training_flop"] - budget) <= row["training_flop"] / row["steps"] / 2
    assert row["held_out_loss"] == min(row["held_out_losses"].values())
    assert row["bare_flop_per_second"] > 0
    assert {"--batch-size", "128", "muon"} <= set(shlex.split(row["command"]))
    assert f"| batch 128 | {row['held_out_loss']:.5f} |" in rows.with_suffix(".md").read_text()

    assert run_script("benchmarks/architecture_search.py", *arguments, "--variants", "batch 128").status == 0
    assert rows.read_bytes() == written


def test_the_page_shows_every_row_whether_or_not_its_variant_is_still_there():
    path = ROOT / "docs" / "architecture_search.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["variant"] for row in rows} - architecture_search.VARIANTS.keys() >= {"RMS norm", "hard swish"}
    written = path.with_suffix(".md").read_text()
    assert page(rows) == written
    assert all(f"| {row['variant']} | {row['held_out_loss']:.5f} |" in written for row in rows)


def test_fid_is_measured_once_a_seed_of_the_best_average_and_fresh_seeds_are_kept_apart(monkeypatch, tmp_path):
    row = {
        "variant": "batch 128",
        "flop_budget": 1e14,
        "steps": 9000,
        "ema_decay": 0.998,
        "fid": {},
    }
    commands = []

    def stand_in(command):
        commands.append(command)
        options = dict(zip(command[2::2], command[3::2], strict=True))
        settings = SamplingSettings(
            options["--solver"], int(options["--num-steps"]), guide_scale=float(options["--guide-scale"])
        )
        result = dict.fromkeys(architecture_search.FID_PROTOCOL) | settings.to_dict()
        result |= {
            "arithmetic": "bf16" if options["--seed"] != "7" else "fp32",
            "nfe": 47,
            "fid": float(options["--seed"]),
        }
        Path(options["--output"]).write_text(json.dumps(result))

    monkeypatch.setattr(stage_scripts, "run_script", stand_in)
    for seed in (CHOOSING_SEED, 2, 3, 7):
        measure = partial(architecture_search.add_fid, row, "snapshot at 25 %", seed, "statistics.npz", None, tmp_path)
        if seed == 7:
            with pytest.raises(UserError, match="there are FIDs by"):
                measure()
        else:
            measure()
    assert commands[0][1] == str(tmp_path / "teacher_ema_0.998.safetensors")
    assert str(tmp_path / "snapshots" / "step_0002000_ema_0.998.safetensors") in commands[0]
    (cells,) = guidance_cells(row)
    assert cells[3:] == ("edm-heun 14, autoguidance 2 for t in [0.1, 0.8]", "47", "1000.00", "2.50 ± 0.71 (2)")

    row["steps"] = 3999
    with pytest.raises(UserError, match="no snapshot"):
        architecture_search.add_fid(row, "snapshot at 25 %", 4, "statistics.npz", None, tmp_path)
