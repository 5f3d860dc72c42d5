"""`torch.compile` of the transformer blocks: one small graph, used by all blocks of a stack."""

import torch
from torch import nn

from models.components.st_transformer import STBlock

# Kinds of blocks (encoders, decoders, dynamics; with and without gradients) times batch sizes that are tried.
MOST_VERSIONS = 32


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile every block in place when it first runs; names of parameters stay as they are."""
    torch._dynamo.config.recompile_limit = max(MOST_VERSIONS, torch._dynamo.config.recompile_limit)
    for module in model.modules():
        if isinstance(module, STBlock):
            module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False)
