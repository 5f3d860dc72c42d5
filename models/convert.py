"""Weights from the published GenieRedux format to ours and back.

    python -m models.convert --input checkpoints/tokenizer/tokenizer --output model.pt
    python -m models.convert --input model.pt --output tokenizer.safetensors

The input decides the direction: a run folder, step folder or weight file of ours becomes a published file, a published
file becomes ours. A world needs its tokenizer, `--tokenizer_fpath`, where that does not lie beside it. Conversion is
not needed for loading: every `*_fpath` takes both formats.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from models import pretrained
from models.published import from_published, to_published

__all__ = ["convert", "from_published", "main", "to_published"]


def convert(source: str | Path, target: str | Path, *, tokenizer_fpath: str | Path | None = None) -> None:
    """Write the weights at `source` in the other format to the file `target`, atomically.

    Raises ValueError where the name of `target` does not fit: ours end in .safetensors, published ones in .pt.
    """
    fpath, target = pretrained.resolve_fpath(source), Path(target)
    is_published = pretrained.is_published(fpath)
    suffix = ".safetensors" if is_published else ".pt"
    if target.suffix != suffix:
        kind = "published" if is_published else "Lamp's"
        raise ValueError(f"--input={source} is a file in {kind} format, so --output must end in {suffix}, got {target}")
    model = pretrained.load(fpath, tokenizer_fpath=tokenizer_fpath)
    header = pretrained.read_header(fpath)
    config, metadata = header["config"], header["metadata"]
    if is_published:
        if "tokenizer" in config:
            found = pretrained.find_tokenizer(fpath, None, tokenizer_fpath)
            config = config | {"tokenizer": config["tokenizer"] | {"path": str(found)}}
            metadata = metadata | {"tokenizer_hash": pretrained.content_hash(found)}
        pretrained.save_weights(model, target, config=config, metadata=metadata)
        return
    file = to_published(model, step=metadata.get("step", 0))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    torch.save(file, partial)
    os.replace(partial, target)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="run folder, step folder or weight file of either format")
    parser.add_argument(
        "--output", required=True, help="file to write: .pt from ours, .safetensors from a published one"
    )
    parser.add_argument("--tokenizer_fpath", help="the tokenizer of a world, in either format")
    arguments = parser.parse_args(words)
    try:
        convert(arguments.input, arguments.output, tokenizer_fpath=arguments.tokenizer_fpath)
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
