"""Results in few files of limited size: logs, pictures and weights as tar archives in pieces; and their reader.

    python -m benchmarks.delivery DIR --to=FOLDER        # or, for one of them: cat DIR/weights.tar.* | tar x -C FOLDER

FOLDER then holds `weights/<training>/model.safetensors`, a world's tokenizer beside it: `eval.model_fpath` takes such
a folder. Matrices are stored in bf16.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models import pretrained

MIB = 2**20
PIECE_BYTES = 15 * MIB
SUMS = ".sha256"
PIECE = re.compile(r"(?P<archive>.+\.tar(?:\.gz)?)\.(?P<number>\d{2,})(?:-of-(?P<count>\d{2,}))?$")


class Member(NamedTuple):
    name: str  # in the archive
    fpath: Path


def write_archive(out: Path, name: str, members: Iterable[Member], *, piece_bytes: int = PIECE_BYTES) -> list[Path]:
    """Write `<out>/<name>.00-of-02`, …, none larger than `piece_bytes`, in place of the ones before.

    The archive's last file, `<name>.sha256`, lists the hashes of the others, as `sha256sum --check` reads them: tar has
    no sums of contents.

    name: ends with .tar or .tar.gz. Returns the pieces; none for no members. Those of before stay until all are there.
    """
    partial = out / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    members = list(members)
    if members:
        mode = "w|gz" if name.endswith(".gz") else "w|"
        with _Pieces(partial, name, piece_bytes) as pieces, _open(pieces, mode) as archive:
            sums = [f"{_add(archive, member.name, member.fpath.read_bytes())}  {member.name}\n" for member in members]
            _add(archive, name + SUMS, "".join(sums).encode())
    for old in pieces_of(out, name):
        old.unlink()
    pieces = pieces_of(partial, name)
    written = [fpath.replace(out / f"{fpath.name}-of-{len(pieces):02d}") for fpath in pieces]
    shutil.rmtree(partial)
    return written


def _open(pieces: io.RawIOBase, mode: str) -> tarfile.TarFile:
    """For writing; in GNU's format every number stands in a header, which has a sum."""
    return tarfile.open(fileobj=pieces, mode=mode, format=tarfile.GNU_FORMAT)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> str:
    """Add a file; returns its SHA-256."""
    facts = tarfile.TarInfo(name)
    facts.size, facts.mtime = len(data), int(time.time())
    archive.addfile(facts, io.BytesIO(data))
    return hashlib.sha256(data).hexdigest()


class _Pieces(io.RawIOBase):
    """A file to write to that becomes several."""

    def __init__(self, folder: Path, name: str, piece_bytes: int):
        self.folder, self.archive, self.piece_bytes = folder, name, piece_bytes
        self.number, self.room, self.file = 0, 0, None

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        data, done = memoryview(data), 0
        while done < len(data):
            if not self.room:
                self._open_next()
            taken = self.file.write(data[done : done + self.room])
            done, self.room = done + taken, self.room - taken
        return done

    def _open_next(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = (self.folder / f"{self.archive}.{self.number:02d}").open("wb")
        self.number, self.room = self.number + 1, self.piece_bytes

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


def pieces_of(folder: Path, name: str) -> list[Path]:
    """The pieces of an archive, in order."""
    found = [path for path in folder.glob(f"{name}.*") if PIECE.match(path.name)]
    return sorted(found, key=lambda path: int(PIECE.match(path.name)["number"]))


# ------------------------------------------------------------------------------------------------------------- weights


def narrowed_weights(run_dpath: Path, folder: Path) -> list[Path]:
    """A training's newest weights below `folder` with matrices in bf16, for a world its tokenizer too.

    The world's file names the narrowed tokenizer as its own, since weights in bf16 are other weights.
    """
    tokenizer, facts = run_dpath / pretrained.TOKENIZER, {}
    written = []
    if tokenizer.is_file():
        written.append(_narrow(tokenizer, folder / pretrained.TOKENIZER, {}))
        facts = {"tokenizer_hash": pretrained.content_hash(written[0])}
    return [_narrow(pretrained.resolve_fpath(run_dpath), folder / pretrained.WEIGHTS, facts), *written]


def _narrow(source: Path, target: Path, facts: dict) -> Path:
    header = pretrained.read_header(source)
    header["metadata"] = header["metadata"] | facts | {"stored_as": "bf16"}
    with safe_open(source, framework="pt") as file:
        state = {name: _narrow_tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, target, metadata={"lamp": json.dumps(header)})
    return target


def _narrow_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Vectors, scales and counts stay as they are: they take no room."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.ndim >= 2 else tensor


# ------------------------------------------------------------------------------------------------------------- reading


def unpack(out: Path, folder: Path) -> list[str]:
    """Join and extract all archives of `out` below `folder`; returns their names.

    Raises ValueError or FileNotFoundError in one line where there is no archive, or a piece is missing or damaged;
    nothing is extracted from an archive with a damaged piece.
    """
    names = sorted({match["archive"] for path in out.glob("*.tar*") if (match := PIECE.match(path.name))})
    if not names:
        raise FileNotFoundError(f"{out} holds no pieces of archives, such as weights.tar.00-of-01")
    for name in names:
        joined = b"".join(piece.read_bytes() for piece in _all_pieces(out, name))
        try:
            if name.endswith(".gz"):  # to the end, where gzip has its own sum: tarfile reads no further than it must
                joined = gzip.decompress(joined)
            _check(joined, name + SUMS)
        except (tarfile.ReadError, gzip.BadGzipFile, EOFError, ValueError, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the pieces of {out / name} are damaged ({reason}); copy all of them again") from error
        with tarfile.open(fileobj=io.BytesIO(joined)) as archive:
            archive.extractall(folder, filter="data")
    return names


def _check(joined: bytes, sums_name: str) -> None:
    """Compare all files of a tar archive with the hashes that its last one lists; ValueError where they differ."""
    found, sums = {}, None
    with tarfile.open(fileobj=io.BytesIO(joined)) as archive:
        for entry in archive:
            data = archive.extractfile(entry).read() if entry.isfile() else b""
            if entry.name == sums_name:
                sums = data.decode()
            else:
                found[entry.name] = hashlib.sha256(data).hexdigest()
    if sums is None:
        raise ValueError(f"it ends before {sums_name}, or is of an older version")
    if sums != "".join(f"{value}  {name}\n" for name, value in found.items()):
        raise ValueError(f"its files differ from {sums_name}")


def _all_pieces(out: Path, name: str) -> list[Path]:
    pieces = pieces_of(out, name)
    counts = {int(PIECE.match(piece.name)["count"]) for piece in pieces}
    if len(counts) != 1:
        raise ValueError(f"{out} holds pieces of several {name}, of {sorted(counts)} pieces; remove the old ones")
    (count,) = counts
    numbers = {int(PIECE.match(piece.name)["number"]) for piece in pieces}
    if missing := sorted(set(range(count)) - numbers):
        raise ValueError(
            f"{out} lacks {name}.{missing[0]:02d}-of-{count:02d}; copy all pieces of an archive into one folder"
        )
    sizes = [piece.stat().st_size for piece in pieces]
    for piece, size in zip(pieces[:-1], sizes, strict=False):
        if size != max(sizes):
            raise ValueError(f"{piece} is cut off at {size} bytes of {max(sizes)}; copy it again")
    return pieces


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR", help="what gpu_suite.sh wrote")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args(words)
    try:
        names = unpack(arguments.out, arguments.to)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"extracted {', '.join(names)} to {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
