"""Archives in pieces and weights in bf16: what is written can be read again, and what is damaged says so."""

import shutil
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
def test_a_wrong_bit_anywhere_is_an_error_of_one_line_or_changes_nothing(name, tmp_path):
    contents = {"a.bin": bytes(range(200)), f"{'long/' * 25}ä.txt": b"twelve words"}
    for member, content in contents.items():
        (tmp_path / "source" / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / member).write_bytes(content)
    (piece,) = delivery.write_archive(
        tmp_path / "out", name, [Member(member, tmp_path / "source" / member) for member in contents]
    )
    right, noticed = piece.read_bytes(), 0
    places = range(0, len(right.rstrip(bytes(1))), 1 if name.endswith(".gz") else 7)  # tar ends in zeros
    for place in places:
        piece.write_bytes(right[:place] + bytes([right[place] ^ (1 << place % 8)]) + right[place + 1 :])
        try:
            delivery.unpack(tmp_path / "out", tmp_path / "joined")
        except ValueError as error:
            noticed += 1
            assert str(error).startswith(f"the pieces of {tmp_path / 'out' / name} are damaged (")
            assert str(error).endswith("); copy all of them again") and "\n" not in str(error)
            assert not (tmp_path / "joined").exists(), place
        else:
            found = [fpath for fpath in (tmp_path / "joined").rglob("*") if fpath.is_file()]
            assert len(found) == len(contents) + 1, place  # the list of sums
            assert all((tmp_path / "joined" / member).read_bytes() == content for member, content in contents.items())
            shutil.rmtree(tmp_path / "joined")
    assert noticed > (0.9 if name.endswith(".gz") else 0.3) * len(places)  # tar fills files up to whole blocks


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
