"""Actions as people write them: `1,1,4,0`, `RIGHT*10,RIGHT_JUMP*5`; and what a world's actions are called."""

from typing import Any

from data.episodes import read_info
from data_generation.environment import COINRUN_ACTIONS
from play import latent_actions
from play.library import Entry
from play.prompts import source_of
from training.settings import DreamSettings

MOST = 1_000_000  # actions in one text


def names_of(entry: Entry, settings: DreamSettings) -> list[str]:
    """One name for each of a world's actions: of its data set, or those given to latent ones."""
    if entry.is_latent:
        return latent_actions.read(entry.folder, entry.num_actions).shown()
    return recorded_names(entry, _info(entry, settings))


def recorded_names(entry: Entry, info: dict[str, Any]) -> list[str]:
    """One name for each action of a guided world.

    As its file has them; else as its data set's `info` (empty where there is none); else, for a number that fits,
    CoinRun's, on which the published worlds were trained.
    """
    names = entry.recorded_names or info.get("action_names") or COINRUN_ACTIONS
    return list(names) if len(names) == entry.num_actions else [f"action {n}" for n in range(entry.num_actions)]


def real_names_of(entry: Entry) -> dict[str, int]:
    """The latent action for each real one, as the map of a latent world says; of a guided world none."""
    return latent_actions.read(entry.folder, entry.num_actions).mapped() if entry.is_latent else {}


def _info(entry: Entry, settings: DreamSettings) -> dict[str, Any]:
    source = source_of(entry, settings)
    try:
        return {} if source is None else read_info(*source)
    except FileNotFoundError:
        return {}  # a world is played without its data set, too


def parse(text: str, names: list[str], real_names: dict[str, int]) -> list[int]:
    """Indices of the actions in a text, of which `real_names` are other words for some.

    Raises ValueError in one line that lists what there is.
    """
    indices: list[int] = []
    for word in text.split(","):
        name, count = _repeated(word.strip())
        if count is None or len(indices) + count > MOST:
            raise ValueError(f"dream.actions: {word.strip()!r} is not ACTION or ACTION*COUNT, such as 1*10")
        indices += [_index(name, names, real_names)] * count
    return indices


def _repeated(word: str) -> tuple[str, int | None]:
    """An action and how often it is taken; None where that is no number above 0."""
    name, star, count = word.rpartition("*")
    if not star:
        return word, 1
    count = count.strip()
    return name.strip(), int(count) if count.isdecimal() and 0 < int(count) <= MOST else None


def _index(name: str, names: list[str], real_names: dict[str, int]) -> int:
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    folded = [known.casefold() for known in names]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    for real_name, action in real_names.items():
        if name.casefold() == real_name.casefold():
            return action
    known = ", ".join(f"{index} {known}" for index, known in enumerate(names))
    raise ValueError(f"dream.actions: {name!r} is not an action of this world; it has {known}; or random, inferred")
