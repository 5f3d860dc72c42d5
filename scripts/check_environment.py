"""Whether this Python holds what requirements.txt asks for: exit code 0 and what was found, or 1 and what is wrong.

    python scripts/check_environment.py requirements.txt [.venv]

Reads only the metadata of installed packages (imports nothing of them) and runs on any Python 3.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# A user's own build (CPU wheel, other CUDA, newer release) is kept from these versions on; all else is exact.
FLOORS = {"torch": (2, 4), "torchvision": (0, 19)}
LINE = re.compile(
    r"""(?P<name>[\w.-]+)==(?P<version>[\w.+!]+)\s*(;\s*python_version\s*(?P<op><|>=)\s*["'](?P<python>[\d.]+)["'])?$"""
)


def problems(requirements):
    """One phrase for each package that is missing or has another version."""
    for line in requirements.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        match = LINE.match(line)
        if match is None:
            yield f"requirements.txt has a line that is not name==version: {line}"
        elif applies(match["op"], match["python"]):
            yield from problem(match["name"], match["version"])


def applies(operator, python):
    if operator is None:
        return True
    is_older = sys.version_info[:2] < tuple(int(part) for part in python.split("."))
    return is_older if operator == "<" else not is_older


def problem(name, wanted):
    try:
        found = version(name)
    except PackageNotFoundError:
        yield f"{name} is missing"
        return
    if name in FLOORS:
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < FLOORS[name]:
            yield f"{name} is {found}, older than {'.'.join(map(str, FLOORS[name]))}"
    elif found != wanted:
        yield f"{name} is {found}, not {wanted}"


def main(requirements, venv=None):
    is_venv = venv is not None and Path(venv).exists() and Path(sys.prefix).samefile(venv)
    place = f"{venv}" if is_venv else sys.executable
    python = ".".join(map(str, sys.version_info[:3]))
    found = [f"Python {python} is older than 3.11"] if sys.version_info < (3, 11) else []
    found += problems(Path(requirements).read_text(encoding="utf-8"))
    if found:
        more = f" and {len(found) - 1} more differ" if len(found) > 1 else ""
        print(f"in {place} {found[0]}{more}")
        return 1
    print(f"{place} (Python {python}, torch {version('torch')})")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
