"""Muon (Jordan et al. 2024): momentum whose steps are made orthogonal, for the kernels of convolutions.

`torch.optim.Muon` orthogonalises one matrix after another, by products as large as the kernels, in bf16, which a
processor without it has to emulate. Here the same iteration works on the small Gram matrices, all of one size at once,
in fp32. benchmarks/training_rate.py times both; with ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 and
MKL_ENABLE_INSTRUCTIONS=AVX2 also as on such a processor.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial a s + b s^3 + c s^5, which takes singular values towards 1; of Jordan et al."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Steps for kernels (out, in, height, width), channels-last, each as a matrix (out, height width in).

    Every step has the size of one of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2), so
    that AdamW's learning rates serve.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
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
            directions = orthogonalised(
                [as_matrix(step.contiguous(memory_format=torch.channels_last)) for step in ahead]
            )
            torch._foreach_mul_(kernels, 1 - rate * group["weight_decay"])
            for kernel, direction in zip(kernels, directions, strict=True):
                as_matrix(kernel).add_(direction, alpha=-rate * 0.2 * math.sqrt(max(direction.shape)))


def as_matrix(kernel: Tensor) -> Tensor:
    """A view (out, height width in) of a channels-last kernel (out, in, height, width)."""
    return kernel.permute(0, 2, 3, 1).view(len(kernel), -1)


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of each fp32 matrix U S V^T, approximately.

    Singular values come out between about 0.7 and 1.2, but those below about 1/500 of the matrix's Frobenius norm come
    out smaller: five steps multiply small ones by at most 3.4445^5 = 485.

    With X the matrix and A = X X^T, a step of the iteration is X' = (a + b A + c A^2) X =: Q X, and A' = Q A Q. So the
    product of all Q can be had from A alone, and meets X only at the end. A needs fp32: a negative eigenvalue, which is
    rounding, also grows, by up to a^2 a step.
    """
    a, b, c = NEWTON_SCHULZ
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    results: list[Tensor] = list(wide)
    for size in sorted({len(matrix) for matrix in wide}):
        chosen = [index for index, matrix in enumerate(wide) if len(matrix) == size]
        gram = torch.stack([wide[index] @ wide[index].T for index in chosen])
        # The iteration needs singular values of at most 1, as dividing by the Frobenius norm makes them.
        squared_norm = gram.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-14)[:, None, None]
        gram = gram / squared_norm
        identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
        product = identity / squared_norm.sqrt()
        for iteration in range(ITERATIONS):
            factor = torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)
            product = factor @ product
            if iteration < ITERATIONS - 1:
                gram = factor @ gram @ factor
        for index, factors in zip(chosen, product, strict=True):
            results[index] = factors @ wide[index]
    return [
        result if result.shape == matrix.shape else result.T for result, matrix in zip(results, matrices, strict=True)
    ]
