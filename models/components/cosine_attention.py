"""Attention with L2-normalised queries and keys that keeps no probabilities for the backward pass."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.components.cache import Ring
from models.components.recompute import is_eager

COSINE_SCALE = 8.0  # logits of L2-normalised queries and keys; there is no 1/sqrt(d)
EPS = 1e-12
HELD = 2**20  # numbers per intermediate at a time on a CPU: 4 MiB stay near the core


def cosine_attention(q: Tensor, kv: Tensor, q_scale: Tensor, k_scale: Tensor, bias: Tensor, dim: int) -> Tensor:
    """softmax(8 · q̂ · k̂ᵀ + bias) · v with q̂ = q / |q| · q_scale and likewise k̂, for every head.

    q: (B, T, N, heads·d), kv: (B, T, N, 2·heads·d); positions along axis `dim` (1 or 2) see each other.
    q_scale, k_scale: (d,); bias: (heads, length, length). Returns (B, T, N, heads·d).

    torch's fused kernel for CPUs has no gradient of the bias. Where one is wanted torch keeps all probabilities; here
    they are computed again, a few rows at a time.
    """
    is_single = q.dtype == kv.dtype == bias.dtype == torch.float32
    if q.device.type == "cpu" and is_single and is_eager():
        return _CosineAttention.apply(q, kv, q_scale, k_scale, bias, dim)
    heads = len(bias)
    (q,), (k, v) = _split(q, 1, heads, dim), _split(kv, 2, heads, dim)
    out = _attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q_scale, k_scale, bias)
    return out.view(q.shape).movedim(-2, dim).flatten(-2)


def cached_attention(
    q: Tensor, kv: Tensor, q_scale: Tensor, k_scale: Tensor, bias: Tensor, keys: Ring, values: Ring, slots: Tensor
) -> Tensor:
    """`cosine_attention` over time of frames that go to `slots` (n,) of the rings, with those before them there.

    q: (B, n, N, heads·d), kv: (B, n, N, 2·heads·d); rings: (B, N, heads, size, d); bias: (heads, n, size).
    """
    heads = len(bias)
    (q,), (k, v) = _split(q, 1, heads, 1), _split(kv, 2, heads, 1)
    keys.write(slots, _normed(k, k_scale))
    values.write(slots, v)
    out = F.scaled_dot_product_attention(
        _normed(q, q_scale).to(values.values.dtype).flatten(0, 1),
        keys.values.flatten(0, 1),
        values.values.flatten(0, 1),
        attn_mask=bias.to(values.values.dtype)[None],
        scale=COSINE_SCALE,
    )
    return out.view(q.shape).movedim(-2, 1).flatten(-2)


def _normed(x: Tensor, scale: Tensor) -> Tensor:
    # In the type of the scale: under autocast a CPU would leave norms to half precision.
    return F.normalize(x.to(scale.dtype), dim=-1, eps=EPS) * scale


def _attend(q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, bias: Tensor) -> Tensor:
    """q, k, v: (rows, heads, length, d)."""
    q, k = _normed(q, q_scale), _normed(k, k_scale)
    return F.scaled_dot_product_attention(
        q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias.to(v.dtype)[None], scale=COSINE_SCALE
    )


def _split(x: Tensor, parts: int, heads: int, dim: int) -> Tensor:
    """(B, T, N, parts·heads·d) -> a view (parts, B, T or N, heads, length, d)."""
    return x.unflatten(-1, (parts, heads, -1)).movedim((-3, dim), (0, -2))


class _CosineAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, kv, q_scale, k_scale, bias, dim):
        ctx.save_for_backward(q, kv, q_scale, k_scale, bias)
        ctx.dim, bias = dim, bias.detach()  # the fused kernel takes no bias that wants a gradient
        out = q.new_empty(q.shape)
        (q,), (k, v), (target,) = (_split(x, n, len(bias), dim) for x, n in ((q, 1), (kv, 2), (out, 1)))
        for part in _pieces(q):
            rows = _attend(*(x[:, part].flatten(0, 1) for x in (q, k, v)), q_scale, k_scale, bias)
            target[:, part] = rows.unflatten(0, (len(q), -1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, kv, q_scale, k_scale, bias = ctx.saved_tensors
        of_q, of_kv = torch.empty_like(q), torch.empty_like(kv)
        of_shared = [torch.zeros_like(x) for x in (q_scale, k_scale, bias)]
        inputs = [row for x, n in ((q, 1), (kv, 2), (grad, 1)) for row in _split(x, n, len(bias), ctx.dim)]
        outputs = [row for x, n in ((of_q, 1), (of_kv, 2)) for row in _split(x, n, len(bias), ctx.dim)]
        for part in _pieces(inputs[0]):
            gradients = _gradients(*(x[:, part] for x in inputs), q_scale, k_scale, bias)
            for target, value in zip(outputs, gradients[:3], strict=True):
                target[:, part] = value
            for total, value in zip(of_shared, gradients[3:], strict=True):
                total += value
        return of_q, of_kv, *of_shared, None


def _pieces(q: Tensor) -> Iterator[slice]:
    """Slices of axis 1 of q (B, others, heads, length, d), so that queries and probabilities of one stay small."""
    batch, others, heads, length, d = q.shape
    size = max(1, HELD // (batch * heads * length * max(length, d)))
    return (slice(start, start + size) for start in range(0, others, size))


def _gradients(q, k, v, grad, q_scale, k_scale, bias) -> tuple[Tensor, ...]:
    """Gradients of q, k, v (B, others, heads, length, d), q_scale, k_scale and bias, from that of the output."""
    shape = q.shape
    q, k, v, grad = (x.reshape(-1, *shape[-2:]) for x in (q, k, v, grad))
    (q_unit, q_norm), (k_unit, k_norm) = _unit(q), _unit(k)
    q, k = q_unit * q_scale, k_unit * k_scale
    logits = torch.baddbmm(bias.repeat(len(q) // len(bias), 1, 1), q, k.mT, alpha=COSINE_SCALE)
    probabilities = torch.softmax(logits, dim=-1, out=logits)
    of_v = torch.bmm(probabilities.mT, grad)
    of_logits = torch.bmm(grad, v.mT)
    torch._softmax_backward_data(of_logits, probabilities, -1, grad.dtype, grad_input=of_logits)
    of_q, of_q_scale = _unit_backward(torch.bmm(of_logits, k).mul_(COSINE_SCALE), q_unit, q_norm, q_scale)
    of_k, of_k_scale = _unit_backward(torch.bmm(of_logits.mT, q).mul_(COSINE_SCALE), k_unit, k_norm, k_scale)
    of_bias = of_logits.view(-1, *bias.shape).sum(0)
    return of_q.view(shape), of_k.view(shape), of_v.view(shape), of_q_scale, of_k_scale, of_bias


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(EPS)
    return x / norm, norm


def _unit_backward(grad: Tensor, unit: Tensor, norm: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale from that of scale · x / |x|."""
    of_scale = (grad * unit).flatten(0, -2).sum(0)
    grad = grad * scale
    along = (grad * unit).sum(-1, keepdim=True)
    return grad.addcmul_(unit, along, value=-1).div_(norm), of_scale
