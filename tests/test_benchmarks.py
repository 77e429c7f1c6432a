"""The measurements that are not tested with what they measure run, and print what they promise."""

import platform

import pytest


def test_sampling_is_measured_by_batch_size(run_script):
    result = run_script("benchmarks/sampling_rate.py", "--preset", "tiny", "--batch-sizes", 2, 4, "--rounds", 1)
    assert result.status == 0, result.err
    assert [line.split()[2] for line in result.out.splitlines() if line.startswith("batches of")] == ["2", "4"]
    assert "aten::mkldnn_convolution" in result.out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are of glibc")
def test_the_allocator_s_settings_save_page_faults(run_script):
    result = run_script("benchmarks/allocation.py", "--preset", "tiny", "--steps", 3, "--rounds", 1)
    assert result.status == 0, result.err
    faults = {
        line[:24].strip(): int(line.split(" page faults")[0].split()[-1].replace(",", ""))
        for line in result.out.splitlines()
        if "page faults" in line
    }
    assert faults["as the project sets it"] < faults["neither setting"]
    assert len(faults) == 4
