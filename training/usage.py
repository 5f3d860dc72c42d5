"""How often each code of a codebook is chosen while a model runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from training.scorers import Counts


class Usage:
    """Counts the choices of every quantizer in a model: `codes` of a tokenizer, `actions` of a world that learns them.

    A quantizer is a module with a `codebook_size` whose output has `indices` (`models.components.quantizers`).
    """

    def __init__(self, model: nn.Module):
        self.modules = {name: module for name, module in model.named_modules() if hasattr(module, "codebook_size")}
        self._found = {name: Counts(module.codebook_size) for name, module in self.modules.items()}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, forward passes are counted."""
        with ExitStack() as stack:
            for name, module in self.modules.items():
                stack.enter_context(module.register_forward_hook(self._hook(self._found[name])))
            yield

    @staticmethod
    def _hook(counts: Counts):
        def count(module: nn.Module, inputs, output) -> None:
            if hasattr(output, "indices"):
                counts.update(output.indices)

        return count

    def gather(self, device: torch.device) -> None:
        """Add up over all processes; each must call this once, after counting."""
        for counts in self._found.values():
            counts.gather(device)

    @property
    def counts(self) -> dict[str, Tensor]:
        """(K,) for `codes` and `actions`, where any were chosen."""
        return {name: found.counts for name, found in self._used().items()}

    def scores(self) -> dict[str, float]:
        """`…_used`, the perplexity over all clips, and `…_share`, the share of codes chosen at least once."""
        scores = {}
        for name, found in self._used().items():
            scores |= {f"validation/{name}_used": found.perplexity, f"validation/{name}_share": found.share_used}
        return scores

    def _used(self) -> dict[str, Counts]:
        return {
            "actions" if path.startswith("actions.") else "codes": found
            for path, found in self._found.items()
            if found.counts.sum()
        }
