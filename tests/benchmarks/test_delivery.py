"""Archives in pieces and weights in bf16: what is written can be read again, and what is damaged says so."""

import subprocess

import pytest
import torch

from benchmarks import delivery
from benchmarks.delivery import Member
from models import pretrained
from tests.training.workers import tiny
from training.trainer import train


@pytest.fixture
def members(tmp_path):
    """Files of 10,000 random bytes together."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name, size in (("a.bin", 7000), ("b/c.bin", 3000)):
        fpath = tmp_path / "source" / name
        fpath.parent.mkdir(parents=True, exist_ok=True)
        fpath.write_bytes(torch.randint(256, (size,), dtype=torch.uint8, generator=generator).numpy().tobytes())
        found.append(Member(name, fpath))
    return found


def check_extracted(folder, members):
    for member in members:
        assert (folder / member.name).read_bytes() == member.fpath.read_bytes()


@pytest.mark.parametrize("name", ["weights.tar", "logs.tar.gz"])
def test_no_piece_is_larger_than_allowed_and_joined_they_are_the_archive(name, members, tmp_path):
    pieces = delivery.write_archive(tmp_path / "out", name, members, piece_bytes=1024)
    assert len(pieces) > 9 and all(piece.stat().st_size == 1024 for piece in pieces[:-1])
    assert 0 < pieces[-1].stat().st_size <= 1024
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [piece.name for piece in pieces]
    assert delivery.unpack(tmp_path / "out", tmp_path / "joined") == [name]
    check_extracted(tmp_path / "joined", members)


def test_cat_and_tar_join_the_pieces_too(members, tmp_path):
    delivery.write_archive(tmp_path / "out", "weights.tar", members, piece_bytes=1024)
    (tmp_path / "joined").mkdir()
    subprocess.run("cat out/weights.tar.* | tar x -C joined", shell=True, check=True, cwd=tmp_path)
    check_extracted(tmp_path / "joined", members)
    subprocess.run(["sha256sum", "--check", "--strict", "weights.tar.sha256"], check=True, cwd=tmp_path / "joined")


def test_a_smaller_archive_leaves_no_piece_of_the_larger_one(members, tmp_path):
    delivery.write_archive(tmp_path, "weights.tar", members, piece_bytes=1024)
    pieces = delivery.write_archive(tmp_path, "weights.tar", members[:1])
    assert delivery.pieces_of(tmp_path, "weights.tar") == pieces == [tmp_path / "weights.tar.00-of-01"]
    assert delivery.write_archive(tmp_path, "weights.tar", []) == []
    assert not delivery.pieces_of(tmp_path, "weights.tar")


@pytest.mark.parametrize("lost", [0, 4, -1])
def test_a_missing_piece_is_named_in_one_line(lost, members, tmp_path, capsys):
    piece = delivery.write_archive(tmp_path / "out", "weights.tar", members, piece_bytes=1024)[lost]
    piece.unlink()
    assert delivery.main([str(tmp_path / "out"), f"--to={tmp_path / 'joined'}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'out'} lacks {piece.name}; copy all pieces")


@pytest.mark.parametrize("name", ["weights.tar", "logs.tar.gz"])
def test_a_piece_that_is_cut_off_is_an_error_of_one_line(name, members, tmp_path, capsys):
    piece = delivery.write_archive(tmp_path / "out", name, members, piece_bytes=1024)[3]
    piece.write_bytes(b"short")
    assert delivery.main([str(tmp_path / "out"), f"--to={tmp_path / 'joined'}"]) == 2
    assert capsys.readouterr().err == f"error: {piece} is cut off at 5 bytes of 1024; copy it again\n"


@pytest.mark.parametrize("name", ["weights.tar", "logs.tar.gz"])
def test_one_wrong_byte_anywhere_in_a_file_is_an_error_of_one_line_and_nothing_is_extracted(
    name, members, tmp_path, capsys
):
    pieces = delivery.write_archive(tmp_path / "out", name, members, piece_bytes=1024)
    for number in range(7):  # in the first file's header and its 7,000 bytes
        right = pieces[number].read_bytes()
        pieces[number].write_bytes(bytes([right[0] ^ 1]) + right[1:])
        assert delivery.main([str(tmp_path / "out"), f"--to={tmp_path / 'joined'}"]) == 2, number
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: the pieces of {tmp_path / 'out' / name} are damaged ("), line
        assert line.endswith("); copy all of them again")
        assert not (tmp_path / "joined").exists()
        pieces[number].write_bytes(right)
    assert delivery.unpack(tmp_path / "out", tmp_path / "joined") == [name]


def test_a_folder_without_archives_is_an_error_of_one_line(tmp_path, capsys):
    assert delivery.main([str(tmp_path), f"--to={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} holds no pieces of archives, such as weights.tar.00-of-01\n"


def test_narrowed_weights_are_the_same_model_in_half_the_bytes(tmp_path):
    train(tiny.configure("genie_redux_guided", tmp_path, train__num_train_steps=1))
    run = tmp_path / "runs" / "genie_redux_guided" / "genie_redux_guided"
    model, _ = delivery.narrowed_weights(run, tmp_path / "narrow")
    assert model.stat().st_size < 0.6 * pretrained.resolve_fpath(run).stat().st_size
    before, after = pretrained.load(run), pretrained.load(tmp_path / "narrow")  # its own tokenizer is found and fits
    named = dict(before.named_parameters())
    for name, value in after.named_parameters():
        assert torch.allclose(value, named[name], rtol=2**-8, atol=0), name
    assert after.tokenizer.codebook_size == before.tokenizer.codebook_size
    with pytest.raises(ValueError, match="is not the tokenizer that"):
        pretrained.load(tmp_path / "narrow", tokenizer_fpath=run / pretrained.TOKENIZER)
