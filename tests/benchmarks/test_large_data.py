from benchmarks import large_data
from data.episodes import Episodes

MB = 2**20


def test_made_up_datasets_are_datasets_that_take_no_room(tmp_path):
    folder = large_data.make_dataset(tmp_path / "made", 20_000)
    read = Episodes(tmp_path, "made", "train")
    assert 20_000 <= read.lengths.sum() < 20_000 + large_data.EPISODES_PER_SHARD * large_data.EPISODE_LENGTHS[1]
    assert not read.frames(3, 100, 16).any() and read.actions(3, 100, 16).max() < 7
    assert sum(fpath.stat().st_blocks * 512 for fpath in folder.glob("*.h5")) < 2 * MB
    opened = large_data.opening(folder, 16)
    assert opened["frames"] == read.lengths.sum() and opened["clips"] == opened["frames"] - 15 * read.num_episodes


def test_reading_a_dataset_larger_than_the_memory_limit_takes_no_more_memory_than_its_beginning(tmp_path):
    folder = large_data.make_dataset(tmp_path / "made", 25_000)
    room = 128 * MB
    grown = large_data.memory_growth(folder, 16, batch_size=8, num_batches=400, room=room)
    assert grown["dataset"] > 2 * room and grown["read"] > 4 * room
    assert grown["late"] < room and grown["late"] - grown["early"] < 8 * MB
