"""Tells a person that a codebook has collapsed while there is still time to do something about it."""

import math
from dataclasses import dataclass, field

# Scalar that a model logs -> what is collapsing, and what has helped.
WATCHED = {
    "train/actions_used": (
        "latent actions",
        "frames may hardly change between steps (raise train.frame_skip or use data with more movement), or unused "
        "codes stay where they are (set quantizer.dead_code_steps=100), or try --quantizer=fsq_actions",
    ),
    "train/codes_used": (
        "tokenizer codes",
        "lower optimizer.lr or lengthen optimizer.warmup_steps, or try --quantizer=fsq, which has no codebook to lose",
    ),
}
FEWEST = 1.5  # perplexity: effective number of codes in use


@dataclass
class CollapseAlarm:
    """Watches the logged perplexities: below 1.5 for `patience` steps in a row, it says so, once per collapse."""

    patience: int
    _since: dict[str, int] = field(default_factory=dict)  # first step of the present low stretch
    _told: set[str] = field(default_factory=set)

    def warnings(self, step: int, scalars: dict[str, float]) -> list[str]:
        """What there is to say after these scalars were logged at this step."""
        said = []
        for name, (what, advice) in WATCHED.items():
            if name not in scalars or math.isnan(scalars[name]):  # nan: all steps since the last reading were bad
                continue
            if scalars[name] >= FEWEST:
                self._since.pop(name, None)
                self._told.discard(name)
                continue
            since = self._since.setdefault(name, step)
            if step - since >= self.patience and name not in self._told:
                self._told.add(name)
                said.append(
                    f"warning: the {what} have collapsed: perplexity {scalars[name]:.2f} (below {FEWEST}) since step "
                    f"{since}; {advice}"
                )
        return said
