"""The list of worlds, and those of it that are in memory."""

import os
import shutil

import pytest
import torch

from models.published import to_published
from play.hall import Hall, choose_device
from play.library import UNKNOWN_SIZE, Library, NoRoomError
from tests.models.test_published import other_sizes
from tests.play.stage import GUIDED, LATENT, settings_for


@pytest.fixture
def copied(root, tmp_path):
    """A folder of our own with both worlds in it."""
    shutil.copytree(root / "outputs", tmp_path / "outputs")
    return tmp_path


def library(folder, **changes):
    return Library(settings_for(folder, **{"model_fpath": None} | changes), torch.device("cpu"))


def weights(folder, name):
    return folder / "outputs" / name / "step-00000007" / "model.safetensors"


def test_worlds_are_listed_newest_first_and_the_chosen_one_before_all(copied):
    os.utime(weights(copied, LATENT), (2e9, 2e9))
    assert [entry.name for entry in library(copied).scan()] == [LATENT, GUIDED]
    chosen = library(copied, model_fpath=str(copied / "outputs" / GUIDED)).scan()
    assert [entry.name for entry in chosen] == [GUIDED, LATENT]


def test_an_entry_says_what_its_files_do(copied):
    guided, latent = sorted(library(copied).scan(), key=lambda entry: entry.name)
    assert (guided.is_latent, guided.can_refine, guided.num_actions) == (False, False, 7)
    assert (latent.is_latent, latent.can_refine, latent.num_actions) == (True, True, 7)
    for entry in (guided, latent):
        assert (entry.image_size, entry.trained_steps, entry.window) == ((16, 16), 7, 4)


def test_published_worlds_are_played_with_the_tokenizer_that_is_named(tmp_path):
    for name, model in other_sizes().items():
        (tmp_path / "outputs" / name).mkdir(parents=True)
        torch.save(to_published(model, step=3), tmp_path / "outputs" / name / "model.pt")
    changes = {"model_fpath": None, "tokenizer_fpath": str(tmp_path / "outputs" / "tokenizer" / "model.pt")}
    hall = Hall(settings_for(tmp_path, **changes))
    entries = {entry.name: entry for entry in hall.library.entries.values()}
    assert entries.keys() == {"latent/model.pt", "recorded/model.pt"}
    assert [entry.image_size for _, entry in sorted(entries.items())] == [(16, 16), UNKNOWN_SIZE]
    for entry in entries.values():
        loaded = hall.load(entry)
        player = hall.begin(loaded, hall.prompts.find(entry, None), hall.wishes(entry, {}), True)
        assert loaded.world.dynamics.context is not None
        shown = [player.step(1) for _ in range(2 * loaded.world.dynamics.context + 2)]
        assert shown[-1].number == len(shown) and shown[-1].dream.shape == (*entry.image_size, 3)
    hall.close()


def test_of_a_run_the_latest_step_is_played(copied):
    first = weights(copied, GUIDED).parent
    shutil.copytree(first, first.with_name("step-00000010"))
    entries = {entry.name: entry for entry in library(copied).scan()}
    assert entries[GUIDED].fpath.parent.name == "step-00000010" and len(entries) == 2


def test_what_cannot_be_played_is_left_out_and_named(copied, capsys):
    weights(copied, LATENT).write_bytes(b"\x10\0\0\0\0\0\0\0damaged")
    (copied / "outputs" / "notes.pt").write_text("no weights")
    shutil.copy(copied / "outputs" / GUIDED / "tokenizer.safetensors", copied / "outputs" / "a.safetensors")
    assert [entry.name for entry in library(copied).scan()] == [GUIDED]
    warnings = capsys.readouterr().err
    assert str(weights(copied, LATENT)) in warnings and "notes.pt" in warnings and "a.safetensors" not in warnings


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"roots": ["no/such/folder"]}, "no world was found below no/such/folder"),
        ({"model_fpath": "no/such/run"}, "play.model_fpath=no/such/run: no weights at"),
        ({"session_graphs": "true"}, "play.session_graphs is true, but graphs are recorded on a GPU, .* set auto"),
    ],
)
def test_nothing_to_play_is_one_clear_line(copied, changes, found):
    with pytest.raises((ValueError, OSError), match=found) as error:
        Hall(settings_for(copied, **{"model_fpath": None} | changes))
    assert "\n" not in str(error.value)


def test_a_tokenizer_is_no_world(copied):
    fpath = copied / "outputs" / GUIDED / "tokenizer.safetensors"
    with pytest.raises(ValueError, match="holds no world"):
        library(copied, model_fpath=str(fpath)).scan()


def test_worlds_in_memory_are_bounded_and_none_that_is_played_is_dropped(copied):
    shelf = library(copied, worlds_in_memory=1)
    guided, latent = sorted(shelf.scan(), key=lambda entry: entry.name)
    first = shelf.take(guided)
    assert shelf.take(guided) is first and first.num_players == 2
    with pytest.raises(NoRoomError, match=f"{GUIDED} are being played"):
        shelf.take(latent)
    shelf.release(first)
    shelf.release(first)
    second = shelf.take(latent)
    assert second.entry is latent and list(shelf._loaded) == [latent.id]
    shelf.release(second)
    assert shelf.take(guided) is not first


def test_a_world_that_was_trained_on_is_loaded_anew(copied):
    shelf = library(copied)
    first = shelf.take(next(entry for entry in shelf.scan() if entry.name == GUIDED))
    step = weights(copied, GUIDED).parent
    shutil.copytree(step, step.with_name("step-00000010"))
    again = shelf.take(next(entry for entry in shelf.scan() if entry.name == GUIDED))
    assert again is not first and again.entry.fpath.parent.name == "step-00000010"
    shelf.release(first)
    assert (first.num_players, again.num_players) == (0, 1)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", ""])
def test_a_device_that_is_not_there_names_the_key(name):
    with pytest.raises(ValueError, match=r"play\.device is .*does not have"):
        choose_device(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
def test_on_a_gpu_the_players_of_a_world_share_its_graphs(copied):
    hall = Hall(settings_for(copied, device="cuda"))
    entry, loaded = hall.current, hall.load(hall.current)
    wishes, prompt = hall.wishes(entry, {}), hall.prompts.find(entry, None)
    players = [hall.begin(loaded, prompt, wishes, False) for _ in range(2)]
    for action in (1, 2, 3):
        one, other = (player.step(action).dream for player in players)
        assert (one == other).all()
    assert loaded.world.graphs.num_bytes() > 0
    hall.close()
