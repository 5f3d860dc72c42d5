"""Imported films have no actions: a tokenizer and a latent world train on them by the usual words."""

from data import import_videos
from tests.data.films import greys, write_video
from training import main

from .workers import tiny


def test_a_latent_world_trains_on_an_import(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for number in range(3):
        write_video(tmp_path / "in" / f"{number}.mp4", greys(12, 64, 96))
    words = f"--input {tmp_path / 'in'} --root {tmp_path / 'd'} --name films --image_size 16x24"
    assert import_videos.main(words.split()) == 0
    words = f"""{tiny.TRAINING} train.dataset_root_dpath={tmp_path / "d"} train.save_root_dpath={tmp_path / "runs"}
        train.dataset_name=films data.image_size=[16,24] train.num_train_steps=2"""
    for config, groups in (("tokenizer", ("tokenizer",)), ("genie_redux", ("lam", "dynamics"))):
        sizes = " ".join(tiny.SMALL[group] for group in groups)
        assert main.main([f"--config={config}.yaml", *(f"--{word}" for word in f"{words} {sizes}".split())]) == 0
    assert (tmp_path / "runs" / "genie_redux" / "genie_redux" / "step-00000002" / "model.safetensors").exists()
