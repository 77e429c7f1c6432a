"""The device and the arithmetic precision of a run."""

import os
import platform
from dataclasses import dataclass

import torch

from common.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")

# PyTorch lets cuDNN's convolutions round their inputs to 10 bits (TF32). What is called fp32 would then be another
# arithmetic on a GPU than on a CPU, and too coarse for dopri5's tolerance.
torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class Precision:
    """Where networks run and in which arithmetic; their weights are always kept in fp32."""

    device: torch.device
    name: str
    """`fp32` or `bf16`."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.name == "bf16")


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU. Raises UserError for a device that is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"this machine has no device {name!r}") from None
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware is faster at it, fp32 elsewhere."""
    if name == "auto":
        name = "bf16" if has_fast_bf16(device) else "fp32"
    return Precision(device, name)


def has_fast_bf16(device: torch.device) -> bool:
    """CUDA from Ampere on, CPUs with AMX, and those with AVX-512 bf16 that are not Intel's.

    On AMD's EPYC convolutions are 1.7 times as fast in bf16. On an Intel Xeon that has the instruction, but no
    AMX, they run at 0.57 of their fp32 rate (docs/speed.md); no other Intel processor was tried.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch asks about the current device only
            return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    is_intel = features.get("cpu_name", "").startswith("Intel")
    return bool(features.get("amx_bf16") or (features.get("avx512_bf16") and not is_intel))


def describe_machine(device: torch.device) -> str:
    """The GPU, or the processor with its cores and the vector instructions that decide its speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    features = torch.cpu.get_capabilities()
    name = features.get("cpu_name") or platform.processor() or platform.machine()
    extensions = [extension for extension in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if features.get(extension)]
    return ", ".join([name, f"{os.cpu_count()} cores", *extensions[:1]])
