"""What a kernel or operation does, read off its name: `matrix products`, `attention`, …, `norms, elementwise`."""

import re

MATRICES, ATTENTION, CONVOLUTION = "matrix products", "attention", "convolution"
OPTIMIZER, COPIES, ELEMENTWISE = "optimizer, clipping", "copies", "norms, elementwise"
KINDS = (MATRICES, ATTENTION, CONVOLUTION, OPTIMIZER, COPIES, ELEMENTWISE)

# The first that is found in a name counts. Names of torch's operations and of CUDA kernels: cuBLAS's begin with nvjet
# on Hopper, carry gemm elsewhere; cuDNN's attention is an engine named sdpa. Inductor's Triton kernels are templates of
# matrix products (triton_tem) or fused norms and elementwise work, whatever neighbours they are named after.
PATTERNS = (
    (ELEMENTWISE, r"triton_(poi|red|per)"),
    (ATTENTION, r"sdpa|scaled_dot_product|flash|fmha|attention|(^|::)_softmax"),
    (CONVOLUTION, r"conv|dgrad|wgrad|depthwise"),
    (MATRICES, r"gemm|gemv|nvjet|cutlass|cublas|splitk|triton_tem|\b(add|b|badd)?b?mm_?\b|linear|wgmma|s16816"),
    (OPTIMIZER, r"adam|muon|multi_tensor|foreach"),
    (COPIES, r"memcpy|memset|copy|clone|\bcat\b|catarray|\bto\b|contiguous|pad"),
)
COMPILED = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in PATTERNS)


def kind_of(name: str) -> str:
    """One of `KINDS`; what no pattern knows is elementwise."""
    return next((kind for kind, pattern in COMPILED if pattern.search(name)), ELEMENTWISE)
