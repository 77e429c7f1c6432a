"""The measurements that are not tested with what they measure run, and print what they promise."""

import json
import platform
from dataclasses import replace

import pytest
import torch
from conftest import random_network

from benchmarks.cost_section import complete_cost, cost_section
from common.noise import sample_noise
from common.presets import NETWORKS, TEACHER_RECIPES
from common.unet import UNet, count_forward_flop


def test_sampling_is_measured_by_batch_size(run_script):
    result = run_script("benchmarks/sampling_rate.py", "--preset", "tiny", "--batch-sizes", 2, 4, "--rounds", 1)
    assert result.status == 0, result.err
    assert [line.split()[2] for line in result.out.splitlines() if line.startswith("batches of")] == ["2", "4"]
    assert "aten::mkldnn_convolution" in result.out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
def test_the_allocator_s_setting_is_measured_beside_its_default(run_script):
    result = run_script("benchmarks/allocation.py", "--preset", "tiny", "--steps", 1, "--rounds", 1)
    assert result.status == 0, result.err
    lines = [line[:24].strip() for line in result.out.splitlines() if "page faults" in line]
    assert sorted(lines) == ["as the project sets it", "freed memory goes back"]


def test_solvers_are_measured_against_many_small_steps(run_script, make_teacher):
    """With an untrained teacher's smooth velocity: more steps err less, and the reference's own settings not at all."""
    settings = ["adams:4", "adams:12", "edm-heun:16"]
    result = run_script(
        *(
            "benchmarks/solver_error.py",
            make_teacher(),
            "--reference",
            "edm-heun:16",
            "--num-samples",
            4,
            "--settings",
            *settings,
        )
    )
    assert result.status == 0, result.err
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in result.out.splitlines() if line[:1].islower()}
    errors = {name: float(cells[-1]) for name, cells in rows.items() if name[1].isdigit()}
    assert errors[("adams", "4")] > errors[("adams", "12")] > errors[("edm-heun", "16")] == 0
    assert rows[("adams", "12")][0] == "20"  # and 8 of its 12 evaluations lie in the interval
    refused = run_script("benchmarks/solver_error.py", make_teacher(), "--settings", "magic:4")
    assert refused.status == 2 and "magic" in refused.err


def test_mirrored_pairs_are_measured_against_the_teacher_s_own(run_script, make_teacher):
    """Against a step of Euler written out; an untrained network is far from symmetric."""
    arguments = ("--solver", "euler", "--num-steps", 1, "--guidance-scale", 1, "--num-samples", 4)
    result = run_script("benchmarks/mirror_symmetry.py", make_teacher(), *arguments, "--precision", "fp32")
    assert result.status == 0, result.err
    network, noise, start = random_network(), sample_noise(0, 0, 4, (3, 32, 32)), torch.zeros(4)
    with torch.no_grad():
        image = noise + network(noise, start, torch.arange(4))
        mirrored = noise.flip(-1) + network(noise.flip(-1), start, torch.arange(4))
    error = (mirrored.flip(-1) - image).square().mean().item()
    between, of_both = (float(line[45:].split()[0]) for line in result.out.splitlines()[2:])
    assert (between, of_both) == pytest.approx((error, error / 4), abs=1e-4) and error > 0.01


def test_what_a_model_costs_is_measured(run_script, make_teacher, tmp_path, monkeypatch):
    """Of a guided teacher, whose guide, of another size, is asked in two of three steps; another network is refused."""
    monkeypatch.setitem(TEACHER_RECIPES, "tiny", replace(TEACHER_RECIPES["tiny"], batch_size=8))
    network = replace(NETWORKS["tiny"], num_classes=10)
    teacher, guide, output = make_teacher(config=network), make_teacher(seed=1), tmp_path / "cost.jsonl"
    guidance = ("--guide", guide, "--guide-scale", 2, "--guidance-interval", 0.3, 1)
    arguments = ("--preset", "tiny", "--steps", 10, "--repeats", 1, "--solver", "euler", "--num-steps", 3, *guidance)
    result = run_script("benchmarks/model_cost.py", teacher, *arguments, "--output", output)
    assert result.status == 0, result.err
    (cost,) = map(json.loads, output.read_text().splitlines())
    (model,) = cost["models"]
    expected = 3 * count_forward_flop(UNet(network)) + 2 * count_forward_flop(random_network())
    assert model["nfe"] == 5 and model["flop_per_image"] == expected
    assert model["milliseconds_alone"] > model["milliseconds_in_a_batch"] > 0
    assert cost["training_flop_per_second"] > 1e8

    refused = run_script("benchmarks/model_cost.py", guide, "--preset", "tiny")
    assert refused.status == 1 and "has not the network of preset tiny" in refused.err


def test_what_the_shipped_models_cost_is_shown_by_the_last_line_that_is_of_all():
    model = {"name": "a", "stage": "one_step", "checkpoint": "a", "solver": "euler", "num_steps": 1, "nfe": 1}
    model |= {"guidance_scale": 1.0, "guidance_interval": [0.1, 0.8], "training_flop": 7.2e12, "flop_per_image": 6e8}
    model |= {"milliseconds_alone": 12.34, "milliseconds_in_a_batch": 6.0}
    cost = {"models": [model], "preset": "tiny", "training_flop_per_second": 1e9, "batch_size": 64, "repeats": 5}
    cost |= {"machine": "some machine", "arithmetic": "fp32", "versions": {"torch": "2"}}
    faster = cost | {"training_flop_per_second": 2e9}
    of_another = cost | {"models": [model | {"checkpoint": "b"}]}
    section = cost_section(complete_cost([cost, faster, of_another], ["a"]))
    assert "at the 2 GFLOP/s at which" in section and "some machine, fp32" in section
    assert section.splitlines()[-1].endswith("| 1 | 0.60 | 12.3 | 6.0 | 1.0 |")
    assert complete_cost([cost], ["a", "b"]) is None
