"""Fetch weights that others have published, and check what came.

    python download_models.py                              the three GenieRedux models, into checkpoints/
    python download_models.py --models tokenizer guided    some of them
    python download_models.py --models --fid --fvd --lpips only the networks that these metrics need, into weights/

A broken transfer goes on where it stopped when the command is run again. A file gets its name only after its size, its
hash and what it holds have been checked. HF_ENDPOINT chooses another hub than huggingface.co.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import close_session, get_session
from tqdm import tqdm

from models import pretrained
from training import weight_files
from training.setup import describe

HUB = "https://huggingface.co"
REPOSITORY = "INSAIT-Institute/GenieRedux"
ATTEMPTS = 5  # of a transfer, as long as each brings it further
PLAIN = {"Accept-Encoding": "identity"}  # sizes are those of the file, not of a packed stream
TIMEOUT_SECONDS = 30  # without a byte
PARTIAL_CONTENT = 206
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class WeightFile:
    """One external weight file."""

    name: str  # what --models calls it
    source: str  # path in the hub's repository, or a whole URL
    fpath: str  # where it goes, below the folder that the command runs in
    size: str  # for people; the exact one comes from the source
    needed_by: str
    holds: str | None = None  # the model that it must turn out to be; None: not one of ours
    sha256: str = ""  # first digits, where they are known beforehand; else they come from the hub
    flag: str | None = None  # that asks for it; None: --models

    @property
    def url(self) -> str:
        if "://" not in self.source:
            return hf_hub_url(REPOSITORY, self.source, endpoint=endpoint())
        return self.source.replace(HUB, endpoint(), 1) if self.source.startswith(f"{HUB}/") else self.source


def _of_metric(name: str, file: weight_files.NetworkFile, size: str, needed_by: str) -> WeightFile:
    return WeightFile(name, file.url, f"weights/{file.name}", size, needed_by, sha256=file.sha256, flag=file.flag)


def _published(name: str, folder: str, size: str, needed_by: str, holds: str) -> WeightFile:
    return WeightFile(name, f"{folder}/model.pt", f"checkpoints/{folder}/model.pt", size, needed_by, holds)


# Every external weight file. Nothing here is fetched unless this command is run.
TABLE = (
    _published(
        "tokenizer",
        "GenieRedux_Tokenizer_CoinRun_100mln_v1.0",
        "0.4 GB or more",
        "both worlds below (--tokenizer_fpath=), eval of config tokenizer",
        "STViViT",
    ),
    _published(
        "guided",
        "GenieRedux_Guided_CoinRun_80mln_v1.0",
        "0.3 GB or more",
        "config genie_redux_guided (--eval.model_fpath=)",
        "WorldModel with RecordedActions",
    ),
    _published(
        "genie_redux",
        "GenieRedux_CoinRun_250mln_v1.0",
        "1 GB or more",
        "config genie_redux (--eval.model_fpath=)",
        "WorldModel with LatentActions",
    ),
    _of_metric("inception", weight_files.INCEPTION, "0.1 GB", "the metrics fid and fid_nearest (eval.weights_dir)"),
    _of_metric("i3d", weight_files.I3D, "0.05 GB", "the metric fvd (eval.weights_dir)"),
    _of_metric("alexnet", weight_files.ALEXNET, "0.2 GB", "the metric lpips (eval.weights_dir)"),
)
MODELS = tuple(file.name for file in TABLE if file.holds)


@dataclass(frozen=True)
class Remote:
    """What the source says of a file before it is transferred."""

    url: str
    size: int | None
    digest: str  # hexadecimal: a SHA-256 (its first digits may do), or of 40 digits git's hash of a blob; "" if unknown


class UnreachableError(Exception):
    """The source could not be asked."""


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def fetch(file: WeightFile, root: Path = Path()) -> Path:
    """Bring one file to its place below `root` and return its path.

    Raises UnreachableError before a transfer begins, ValueError where it broke off or brought something else.
    """
    fpath = root / file.fpath
    try:
        remote = look_up(file)
    except UnreachableError:
        if not fpath.is_file():
            raise
        check_content(file, fpath)
        print(f"{fpath} is there; its source could not be reached to compare them")
        return fpath
    if fpath.is_file():
        problem = difference(fpath, remote)
        if problem is None:
            check_content(file, fpath)
            print(f"{fpath} is there and complete")
            return fpath
        print(f"{fpath} {problem}: fetching it again")
    fpath.parent.mkdir(parents=True, exist_ok=True)
    # The name holds the digest: the rest of another version is never appended.
    partial = fpath.with_name(f".{fpath.name}.{remote.digest[:12] or 'unknown'}.partial")
    if not partial.exists() or difference(partial, remote):
        print(f"{file.name}: {remote.url} -> {fpath} ({_megabytes(remote.size) or file.size})", flush=True)
        transfer(remote, partial)
    problem = difference(partial, remote)
    if problem is not None:
        partial.unlink()
        raise ValueError(f"what {remote.url} sent {problem}; it was removed, run the command again")
    try:
        check_content(file, partial)
    except ValueError as error:
        partial.unlink()
        raise ValueError(f"what {remote.url} sent was removed: {error}") from error
    os.replace(partial, fpath)
    print(f"{fpath} is complete ({'size and hash' if remote.digest else 'size'} as its source says)")
    return fpath


def look_up(file: WeightFile) -> Remote:
    """Ask the source for a file's size and hash."""
    url = file.url
    close_session()  # a connection kept from the file before may have been closed at the other end meanwhile
    try:
        try:
            facts = get_hf_file_metadata(url, token=False, headers=PLAIN)
        except EntryNotFoundError:
            if "://" in file.source:
                raise
            url = hf_hub_url(REPOSITORY, _find_moved(file), endpoint=endpoint())
            facts = get_hf_file_metadata(url, token=False, headers=PLAIN)
    except ValueError:
        raise
    except Exception as error:  # each layer below has its own kinds
        raise UnreachableError(_reason(error)) from error
    is_digest = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", facts.etag or "")
    return Remote(url, facts.size, file.sha256 or (facts.etag if is_digest else ""))


def _find_moved(file: WeightFile) -> str:
    """The one .pt file of the repository whose path names the same model."""
    folder = Path(file.source).parent.name
    try:
        held = HfApi(endpoint=endpoint(), token=False).list_repo_files(REPOSITORY)
    except Exception as error:  # each layer below has its own kinds
        raise ValueError(f"{REPOSITORY} has no {file.source}, nor a list of its files ({_reason(error)})") from error
    found = [path for path in held if folder in path and path.endswith(".pt")]
    if len(found) != 1:
        raise ValueError(f"{REPOSITORY} has no {file.source}, only {', '.join(held)}")
    return found[0]


def transfer(remote: Remote, partial: Path) -> None:
    """Append to `partial` until it is whole. Raises ValueError where it broke off for good; what came is kept."""
    for attempt in range(ATTEMPTS):
        before = partial.stat().st_size if partial.exists() else 0
        if remote.size is not None and before >= remote.size:  # not what was asked for
            partial.unlink()
            before = 0
        _check_space(partial, (remote.size or 0) - before)
        if before:
            print(f"going on after {_megabytes(before)}", flush=True)
        try:
            _append(remote, partial, before)
            return
        except Exception as error:  # each layer below has its own kinds
            held = partial.stat().st_size if partial.exists() else 0
            if held <= before or attempt == ATTEMPTS - 1:
                of = f" of {remote.size}" if remote.size is not None else ""
                raise ValueError(
                    f"the transfer of {remote.url} broke off after {held}{of} bytes ({_reason(error)}); "
                    "run the command again to go on"
                ) from error
            time.sleep(1)


def _append(remote: Remote, partial: Path, before: int) -> None:
    # The hub's own download begins anew in every process and keeps no part of a file.
    close_session()
    headers = PLAIN | ({"Range": f"bytes={before}-"} if before else {})
    stream = get_session().stream("GET", remote.url, headers=headers, follow_redirects=True, timeout=TIMEOUT_SECONDS)
    with stream as response:
        response.raise_for_status()
        if response.status_code != PARTIAL_CONTENT:  # a source that always sends the whole
            before = 0
        name = partial.name.split(".")[1]
        bar = tqdm(total=remote.size, initial=before, unit="B", unit_scale=True, desc=name, disable=None)
        with bar, open(partial, "ab" if before else "wb") as file:
            for block in response.iter_bytes():
                file.write(block)
                bar.update(len(block))
    size = partial.stat().st_size
    if remote.size is not None and size < remote.size:
        raise ValueError("its source ended there")


def _check_space(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if free < needed:
        raise ValueError(f"{partial.parent} has {_megabytes(free)} free, {_megabytes(needed)} are needed; make room")


def difference(fpath: Path, remote: Remote) -> str | None:
    """What makes a file another than the source's, or None."""
    size = fpath.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"has {size} bytes, expected {remote.size}"
    if not remote.digest:
        return None
    if len(remote.digest) == 40:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with open(fpath, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()[: len(remote.digest)]
    return None if found == remote.digest else f"has the hash {found[:12]}…, expected {remote.digest[:12]}…"


def check_content(file: WeightFile, fpath: Path) -> None:
    """Raise ValueError unless a file holds the model that its name promises. Code in the file is not run."""
    if file.holds is None:
        return
    found = describe(pretrained.read_header(fpath)["config"])
    if found != file.holds:
        raise ValueError(f"{fpath} holds a {found}, expected a {file.holds}")


def _by_hand(files: list[WeightFile], root: Path) -> str:
    missing = [file for file in files if not (root / file.fpath).is_file()]
    return "; ".join(f"fetch {file.url} and save it as {root / file.fpath}" for file in missing)


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(" :.")


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.1f} MB"


def main(words: list[str] | None = None) -> int:
    rows = [f"  {file.name:12} {file.size:14}  {file.fpath}\n{'':30}for {file.needed_by}" for file in TABLE]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="files:\n" + "\n".join(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS, help="which models; all by default")
    for file in TABLE:
        if file.flag is not None:
            parser.add_argument(file.flag, action="store_true", dest=file.name, help=f"fetch {file.fpath} too")
    arguments = parser.parse_args(words)
    chosen = [file for file in TABLE if file.name in arguments.models or (file.flag and getattr(arguments, file.name))]
    root = Path()
    for number, file in enumerate(chosen):
        try:
            fetch(file, root)
        except UnreachableError as error:
            by_hand = _by_hand(chosen[number:], root)
            host = "/".join(file.url.split("/")[:3])
            _tell(f"error: {host} could not be reached ({error}); on a machine that reaches it, {by_hand}")
            return EXIT_USER_ERROR
        except (ValueError, OSError) as error:
            _tell(f"error: {error}")
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            _tell("interrupted; run the command again to go on")
            return EXIT_INTERRUPTED
    return 0


def _tell(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
