"""What the project makes of the machine: its precision, and its memory."""

import os
import platform
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from conftest import ROOT

from common.device import choose_precision
from common.sampling_arguments import sampling_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("processor", "precision"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, "fp32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_is_faster_at_it(monkeypatch, processor, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert choose_precision("auto", CPU).name == precision
    assert choose_precision("bf16", CPU).name == "bf16"


@pytest.mark.parametrize("module", ["sampling", "inception"])
def test_fp32_is_fp32_on_a_gpu_too(module):
    code = f"import torch, common.{module}; assert not torch.backends.cudnn.allow_tf32"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_dopri5_runs_in_fp32_where_other_solvers_run_in_bf16(monkeypatch):
    monkeypatch.setattr("common.device.has_fast_bf16", lambda device: True)
    names = [
        sampling_precision(Namespace(solver=solver, precision="auto", device="cpu")).name
        for solver in (None, "adams", "dopri5")
    ]
    assert names == ["bf16", "bf16", "fp32"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_memory_that_was_freed_stays_with_the_process():
    """By what is resident: page faults would depend on what else the kernel does, such as NUMA balancing."""
    script = """
import resource, torch
from pathlib import Path
from common.memory import keep_freed_memory
keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
torch.ones(2)  # starts torch's threads
before = resident()
torch.ones(2**26)  # 256 MiB, free at once
print((resident() - before) >> 20)
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}

    def megabytes_kept(**more) -> int:
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, cwd=ROOT, env=environment | more, check=True, stdout=subprocess.PIPE).stdout)

    assert megabytes_kept() >= 255
    assert megabytes_kept(GLIBC_TUNABLES="glibc.malloc.tcache_count=7") < 50  # the user's own settings stand
