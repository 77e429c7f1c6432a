"""What the project makes of the machine: its precision, and its memory."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from common.device import choose_precision

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_memory_that_was_freed_comes_back_without_page_faults():
    script = """
import common, resource, torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}

    def faults_of_256_megabytes(**more) -> int:
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, cwd=ROOT, env=environment | more, check=True, stdout=subprocess.PIPE).stdout)

    assert faults_of_256_megabytes() < 20  # they are 65,536 pages, or 128 of the large ones
    assert faults_of_256_megabytes(GLIBC_TUNABLES="glibc.malloc.tcache_count=7") > 100  # the user's own settings stand
