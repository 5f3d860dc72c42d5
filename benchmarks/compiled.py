"""`torch.compile` of the transformer blocks: one small graph, used by all blocks of a stack."""

from torch import nn

from models.components.st_transformer import STBlock


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place when it first runs; names of parameters stay as they are."""
    for module in model.modules():
        if isinstance(module, STBlock):
            module.compile(dynamic=False)
