"""The search for a network: what it trains, what it writes, and that it never does the same twice."""

import json
import shlex


def test_a_variant_is_trained_for_the_flop_asked_for_and_only_once(run_script, image_folder, tmp_path):
    rows, budget = tmp_path / "rows.jsonl", 2e11
    arguments = ("--images", image_folder, "--flop", budget, "--rows", rows, "--out", tmp_path / "runs")
    assert run_script("benchmarks/architecture_search.py", *arguments, "--variants", "batch 32").status == 0
    written = rows.read_bytes()
    row = json.loads(written)
    assert abs(row["training_flop"] - budget) <= row["training_flop"] / row["steps"] / 2
    assert row["held_out_loss"] == min(row["held_out_losses"].values())
    assert row["bare_flop_per_second"] > 0
    assert {"--batch-size", "32", "muon"} <= set(shlex.split(row["command"]))
    assert f"| batch 32 | {row['held_out_loss']:.5f} |" in rows.with_suffix(".md").read_text()

    assert run_script("benchmarks/architecture_search.py", *arguments, "--variants", "batch 32").status == 0
    assert rows.read_bytes() == written
