"""A folder as a few files of limited size: `python -m training.parts split FOLDER OUT`, `python -m training.parts join OUT FOLDER`.

For machines that give back little at a time. `split` writes one tar in parts of at most 15 MiB with a list of checksums; `join`
checks them and unpacks.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

PART = 15 * 2**20  # bytes


def split(folder: Path, out: Path, size: int = PART) -> list[Path]:
    """Write `out`/part-00 ... and `out`/parts.json. Raises FileNotFoundError where there is nothing to split."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} holds no file")
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for path in files:
            tar.add(path, path.relative_to(folder).as_posix(), filter=_plain)
    data, sums = held.getvalue(), {}
    out.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(range(0, len(data), size)):
        part = data[start : start + size]
        (out / f"part-{i:02d}").write_bytes(part)
        sums[f"part-{i:02d}"] = hashlib.sha256(part).hexdigest()
    (out / "parts.json").write_text(json.dumps(sums, indent=1) + "\n")
    return [out / name for name in sums]


def join(parts: Path, folder: Path) -> None:
    """The inverse. Raises ValueError naming the part whose checksum is another one; nothing is unpacked then."""
    sums = json.loads((parts / "parts.json").read_text())
    pieces = {name: (parts / name).read_bytes() for name in sums}
    for name, piece in pieces.items():
        if hashlib.sha256(piece).hexdigest() != sums[name]:
            raise ValueError(f"{name} is not what was sent: its checksum differs from the one in parts.json; copy it again")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces.values()))) as tar:
        tar.extractall(folder, filter="data")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes whoever packs, and whenever."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    if args.what == "split":
        for path in split(args.source, args.target):
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
    else:
        join(args.source, args.target)


if __name__ == "__main__":
    main()
