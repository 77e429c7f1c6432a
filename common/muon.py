"""Muon (Jordan et al. 2024): momentum whose steps are made orthogonal, for the kernels of convolutions.

`torch.optim.Muon` orthogonalises one matrix after another, by products as large as the kernels, in bf16, which a
processor without it has to emulate. Here the iteration works on the small Gram matrices (as in Zhang et al. 2026, Gram
Newton-Schulz), all of one size at once, in fp32, and three steps of it do. benchmarks/training_rate.py times both; with
ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 and MKL_ENABLE_INSTRUCTIONS=AVX2 also as on such a processor.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = ((8.0934, -23.6206, 17.4463), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""The odd polynomials a s + b s^3 + c s^5 that are applied to singular values s, one after the other.

Each is, on the interval to which those before it take [0.01, 1], the one that stays nearest to 1 (Amsel et al. 2025,
The Polar Express): the three take that interval to [0.73, 1.27].
"""


class Muon(torch.optim.Optimizer):
    """Steps for kernels (out, in, height, width), channels-last, each as a matrix (out, height width in).

    Every step has the size of one of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2), so
    that AdamW's learning rates serve.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float):
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            kernels = [kernel for kernel in group["params"] if kernel.grad is not None]
            rate, inertia = group["lr"], group["momentum"]
            gradients = [kernel.grad for kernel in kernels]
            for kernel in kernels:
                if not self.state[kernel]:
                    self.state[kernel]["momentum"] = torch.zeros_like(kernel)
            momenta = [self.state[kernel]["momentum"] for kernel in kernels]
            torch._foreach_lerp_(momenta, gradients, 1 - inertia)
            ahead = torch._foreach_lerp(gradients, momenta, inertia)  # Nesterov's
            steps = [as_matrix(step.contiguous(memory_format=torch.channels_last)) for step in ahead]
            directions = orthogonalised(steps)
            torch._foreach_mul_(kernels, 1 - rate * group["weight_decay"])
            for kernel, direction in zip(kernels, directions, strict=True):
                as_matrix(kernel).add_(direction, alpha=-rate * 0.2 * math.sqrt(max(direction.shape)))


def as_matrix(kernel: Tensor) -> Tensor:
    """A view (out, height width in) of a channels-last kernel (out, in, height, width)."""
    return kernel.permute(0, 2, 3, 1).view(len(kernel), -1)


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of each fp32 matrix U S V^T, approximately.

    With |S| = (sum of s^4)^(1/4), which no singular value s exceeds, those above |S| / 100 come out between 0.73 and
    1.27, and smaller ones in proportion to their size.

    With X the matrix and A = X X^T, a step of the iteration is X' = (a + b A + c A^2) X =: Q X, and A' = Q A Q. So the
    product of all Q can be had from A alone, and meets X only at the end. A needs fp32: a negative eigenvalue, which is
    rounding, also grows, by up to a^2 a step.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    results: list[Tensor] = list(wide)
    for size in sorted({len(matrix) for matrix in wide}):
        chosen = [index for index, matrix in enumerate(wide) if len(matrix) == size]
        gram = torch.stack([wide[index] @ wide[index].T for index in chosen])
        # |S|^2 is the Frobenius norm of A. The polynomials need singular values of at most 1.
        squared_norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-14)
        gram = gram / squared_norm
        first, *later = NEWTON_SCHULZ
        factor = polynomial(gram, *first)
        product = factor * squared_norm.rsqrt()
        for coefficients in later:
            gram = factor @ gram @ factor
            factor = polynomial(gram, *coefficients)
            product = factor @ product
        for index, factors in zip(chosen, product, strict=True):
            results[index] = factors @ wide[index]
    return [
        result if result.shape == matrix.shape else result.T for result, matrix in zip(results, matrices, strict=True)
    ]


def polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b A + c A^2 of matrices A (count, size, size)."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)
