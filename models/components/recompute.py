"""LayerNorm, feed-forward and the choice of what to keep for the backward pass.

A linear layer keeps what it multiplied. Where that is one elementwise step away from a tensor that is kept anyway, the
step is repeated in the backward pass: it costs a few percent of the product that follows, and what a block keeps
halves. On a CPU the work goes through in pieces of rows, and outputs are allocated before intermediates: glibc's heap
cannot fill an aligned hole with a tensor of the same size, so every hole below a kept tensor would be lost.

Under `torch.compile` the plain formulas run, since the compiler makes this choice itself.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LAYER_NORM_EPS = 1e-5
ROWS = 1024  # rows of a piece on a CPU: enough for products at full speed, intermediates of some MiB


def is_eager() -> bool:
    """Whether our own autograd functions run: no compiler looks on."""
    return not torch.compiler.is_compiling()


def add(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch, in the memory of a branch that nobody else holds. Autocast's branches are narrower than x."""
    return branch.add_(x) if branch.dtype == x.dtype else x + branch


def normed_linears(x: Tensor, scale: Tensor, shift: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """LayerNorm of x (…, D), then a linear layer without bias for each weight (M, D): one (…, M) for each.

    Keeps x. The norm is computed in the type of its scale, the products in autocast's.
    """
    return (_NormedLinears.apply if is_eager() else _normed_linears)(x, scale, shift, *weights)


def feed_forward(x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """LayerNorm of x (…, D), expand (2·M, D) to [value, gate], value · gelu(gate), contract (D, M): (…, D).

    Keeps x and [value, gate].
    """
    return (_FeedForward.apply if is_eager() else _feed_forward)(x, scale, shift, expand, contract)


def _normed_linears(x: Tensor, scale: Tensor, shift: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    normed = F.layer_norm(x.to(scale.dtype), scale.shape, scale, shift, LAYER_NORM_EPS)
    return tuple(F.linear(normed, weight) for weight in weights)


def _feed_forward(x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    value, gate = _normed_linears(x, scale, shift, expand)[0].chunk(2, dim=-1)
    return F.linear(value * F.gelu(gate), contract)


class _NormedLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, *weights):
        ctx.save_for_backward(x, scale, shift, *weights)
        dtype = product_dtype(x)
        outs = tuple(x.new_empty(*x.shape[:-1], len(weight), dtype=dtype) for weight in weights)
        weights = [weight.to(dtype) for weight in weights]
        for rows, *parts in _pieces(x, *outs):
            normed = F.layer_norm(rows.to(scale.dtype), scale.shape, scale, shift, LAYER_NORM_EPS).to(dtype)
            for part, weight in zip(parts, weights, strict=True):
                torch.mm(normed, weight.T, out=part)
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, scale, shift, *weights = ctx.saved_tensors
        norm = _NormBackward(x, scale, shift)
        cast = [weight.to(grads[0].dtype) for weight in weights]
        of_weights = [torch.zeros_like(weight) for weight in weights]
        for rows, of_rows, *parts in _pieces(x, norm.of_x, *grads):
            normed = norm.again(rows)
            for total, part in zip(of_weights, parts, strict=True):
                _add_product(total, part, normed)
            norm.backward(sum(part @ weight for part, weight in zip(parts, cast, strict=True)), of_rows)
        return norm.of_x, norm.of_scale, norm.of_shift, *of_weights


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, expand, contract):
        dtype = product_dtype(x)
        hidden = x.new_empty(*x.shape[:-1], len(expand), dtype=dtype)
        out = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
        ctx.save_for_backward(x, hidden, scale, shift, expand, contract)
        expand, contract = expand.to(dtype), contract.to(dtype)
        for rows, part, out_part in _pieces(x, hidden, out):
            normed = F.layer_norm(rows.to(scale.dtype), scale.shape, scale, shift, LAYER_NORM_EPS).to(dtype)
            torch.mm(normed, expand.T, out=part)
            value, gate = part.chunk(2, dim=-1)
            torch.mm(F.gelu(gate).mul_(value), contract.T, out=out_part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, hidden, scale, shift, expand, contract = ctx.saved_tensors
        norm = _NormBackward(x, scale, shift)
        of_expand, of_contract = torch.zeros_like(expand), torch.zeros_like(contract)
        expand, contract = expand.to(grad.dtype), contract.to(grad.dtype)
        for rows, of_rows, part, grad_part in _pieces(x, norm.of_x, hidden, grad):
            of_part, product = _gate_backward(grad_part @ contract, part)
            _add_product(of_contract, grad_part, product)
            _add_product(of_expand, of_part, norm.again(rows))
            norm.backward(of_part @ expand, of_rows)
        return norm.of_x, norm.of_scale, norm.of_shift, of_expand, of_contract


class _NormBackward:
    """A LayerNorm's way back, piece by piece; sums up the gradients of its parameters."""

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor):
        self.scale, self.shift = scale, shift
        self.of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.of_scale, self.of_shift = torch.zeros_like(scale), torch.zeros_like(shift)

    def again(self, rows: Tensor) -> Tensor:
        self.rows = rows.to(self.scale.dtype)
        normed, self.mean, self.rstd = torch.native_layer_norm(
            self.rows, self.scale.shape, self.scale, self.shift, LAYER_NORM_EPS
        )
        return normed

    def backward(self, of_normed: Tensor, of_rows: Tensor) -> None:
        """After `again` for the same rows; writes their gradient into of_rows."""
        of_x, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            of_normed.to(self.scale.dtype), self.rows, self.scale.shape, self.mean, self.rstd, self.scale, self.shift,
            [True] * 3,
        )  # fmt: skip
        of_rows.copy_(of_x)
        self.of_scale += of_scale
        self.of_shift += of_shift


def _gate_backward(of_product: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of [value, gate], and value · gelu(gate) once more. Overwrites of_product."""
    value, gate = hidden.chunk(2, dim=-1)
    of_hidden = torch.empty_like(hidden)
    of_value, of_gate = of_hidden.chunk(2, dim=-1)
    product = F.gelu(gate)
    torch.mul(of_product, product, out=of_value)
    torch.ops.aten.gelu_backward.grad_input(of_product.mul_(value), gate, grad_input=of_gate)
    return of_hidden, product.mul_(value)


def _add_product(total: Tensor, grad: Tensor, inputs: Tensor) -> None:
    """total (M, D) += gradᵀ (M, rows) @ inputs (rows, D), the gradient of a linear layer's weight."""
    if grad.dtype == total.dtype == inputs.dtype:
        total.addmm_(grad.T, inputs)
    else:
        total += grad.T @ inputs.to(grad.dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast multiplies x, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors (…, width), as matrices; on a GPU all rows at once."""
    matrices = [tensor.flatten(0, -2) for tensor in tensors]
    size = ROWS if tensors[0].device.type == "cpu" else max(1, len(matrices[0]))
    return zip(*(matrix.split(size) for matrix in matrices), strict=True)
