"""`train.compile`: each transformer block is compiled, not the whole model, whose size would be its price.

Blocks of one shape share their code. What surrounds them (embeddings, codebooks, losses) stays as it is, and so do the
names of the weights.
"""

import os
import shlex
import shutil
import sysconfig
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from models.components.st_transformer import STBlock

BACKEND = "inductor"
# Kinds of blocks of one model that may be compiled: a latent world has four (two ends of its action model, dynamics,
# encoder of the tokenizer), each with and without gradients; 8 is torch's limit, beyond which it gives up.
MOST_VERSIONS = 32


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile the blocks of a model, each at its first call. A block that cannot be one graph raises then.

    Raises ValueError where the machine has no compiler, or the model no blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, STBlock)]
    if not blocks:
        raise ValueError(
            f"train.compile is true, but {type(model).__name__} has no transformer blocks; set it to false"
        )
    _check_compiler(device)
    torch._dynamo.config.recompile_limit = max(MOST_VERSIONS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        # The forward alone: hooks of the module (sharding has some) stay outside of the graph.
        block.forward = torch.compile(block.forward, backend=BACKEND, fullgraph=True, dynamic=False)


def eagerly() -> AbstractContextManager:
    """Inside, nothing is compiled: for validation and dreams, whose clips have many lengths."""
    return torch.compiler.set_stance("force_eager")


def _check_compiler(device: torch.device) -> None:
    """Raise ValueError where what torch.compile writes could not be built: C++ for a CPU, C for launching on a GPU."""
    variable, names = ("CXX", ("g++",)) if device.type == "cpu" else ("CC", ("gcc", "clang"))
    chosen = os.environ.get(variable)
    names = names if not chosen else (shlex.split(chosen)[0],)
    if not any(shutil.which(name) for name in names):
        raise ValueError(
            f"train.compile is true, but no compiler was found ({' or '.join(names)}); "
            f"install one, set {variable} to its path, or set train.compile=false"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ValueError(
            f"train.compile is true, but {header} is missing; install the headers of Python (python3-dev), "
            "or set train.compile=false"
        )
