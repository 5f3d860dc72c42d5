"""Which results may stand side by side: the facts of their protocols, and clips that several models were given."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from training.intervals import mean_and_interval
from training.measured import Measured

# Facts of a protocol that say which model it is; all others say how it was measured.
OF_THE_MODEL = ("weights", "train_steps", "actions", "num_actions", "action_names")
NULL_IS_A_CHOICE = ("top_k",)  # elsewhere null means that something was not measured
SAME_CLIPS_DB = 1e-3  # difference of what copying the last frame scores on one and the same clip


class Compared(NamedTuple):
    """Models by name, the groups that may be compared, and why there is more than one."""

    models: dict[str, Measured]
    groups: list[list[str]]
    conflicts: dict[str, list[Any]]  # fact -> its value in each group
    differences: dict[str, dict]  # model -> paired PSNR difference to the first of its group


def compare(models: dict[str, Measured]) -> Compared:
    """Put models whose protocols agree into groups, and measure each against the first of its group."""
    facts = {name: facts_of(m) for name, m in models.items()}
    groups = group(facts)
    found = {name: paired_difference(models[name], models[names[0]]) for names in groups for name in names[1:]}
    paired = {name: difference for name, difference in found.items() if difference is not None}
    return Compared(models, groups, conflicts(facts, groups), paired)


def facts_of(measured: Measured) -> dict[str, Any]:
    """How the model was measured: whatever must agree for its numbers to be compared with another's."""
    protocol = measured.results.get("protocol") or {}
    facts = {"kind": "dreams" if measured.results.get("psnr_by_horizon") else "reconstructions"}
    facts |= {key: value for key, value in protocol.items() if key not in OF_THE_MODEL}
    return facts | {"num_clips": measured.results.get("num_clips")}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of facts in which two measurements differ. What only one of them states says nothing."""
    if first["kind"] != second["kind"]:
        return ["kind"]
    shared = [key for key in first if key in second and first[key] != second[key]]
    return [key for key in shared if key in NULL_IS_A_CHOICE or None not in (first[key], second[key])]


def group(facts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Names whose facts all agree with each other, in the order in which they came."""
    groups: list[list[str]] = []
    for name, own in facts.items():
        home = next((names for names in groups if not any(differences(facts[n], own) for n in names)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return groups


def conflicts(facts: Mapping[str, Mapping[str, Any]], groups: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
    """{fact: its value in each group} of the facts that keep groups apart."""
    pairs = [(a, b) for i, first in enumerate(groups) for second in groups[i + 1 :] for a in first for b in second]
    names = {key for a, b in pairs for key in differences(facts[a], facts[b])}
    ordered = dict.fromkeys(key for own in facts.values() for key in own if key in names)
    return {key: [_first(facts, names, key) for names in groups] for key in ordered}


def _first(facts: Mapping[str, Mapping[str, Any]], names: Sequence[str], key: str) -> Any:
    return next((facts[name][key] for name in names if facts[name].get(key) is not None), None)


def paired_difference(measured: Measured, other: Measured) -> dict | None:
    """{"mean", "ci95"} of the PSNR over the other's on the same clips, in dB; None where values by clip are not there.

    The clips are resampled, each with both models' values: how hard a clip is cancels out, so that the interval is
    narrower than the two single ones suggest. Call it for models of one group only.
    """
    own, others = measured.by_clip.get("psnr"), other.by_clip.get("psnr")
    if own is None or others is None or own.shape != others.shape or not _same_clips(measured, other):
        return None
    return mean_and_interval((own - others).reshape(len(own), -1).mean(axis=1))


def _same_clips(measured: Measured, other: Measured) -> bool:
    """Whether copying the last frame scores the same on every clip; a protocol alone does not know of changed data."""
    own, others = measured.by_clip.get("copy_last_psnr"), other.by_clip.get("copy_last_psnr")
    if own is None or others is None:
        return own is others  # tokenizers have no such row
    return own.shape == others.shape and bool((np.abs(own - others) < SAME_CLIPS_DB).all())
