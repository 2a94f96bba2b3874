"""Where the training pictures come from: pinned packages, checksums, licences, and the attribution file made from them."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from training.words import THINGS


@dataclass(frozen=True)
class Source:
    package: str  # on npm
    file: str
    sha256: str
    style: str
    art: str
    licence: str
    home: str


SOURCES = (
    Source(
        "@lobehub/fluent-emoji-3d@1.1.0", "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "3d",
        "Fluent Emoji, copyright (c) Microsoft Corporation; packaged by LobeHub, copyright (c) 2023", "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Source(
        "@iconify-json/noto@1.2.9", "iconify-json-noto-1.2.9.tgz",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "flat",
        "Noto Emoji, copyright Google Inc.; packaged by Iconify", "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
)  # fmt: skip

MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify,
merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished
to do so, subject to the following conditions: The above copyright notice and this permission notice shall be included in all copies
or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT
SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT
OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def fetch(folder: Path) -> list[Path]:
    """Download the pinned packages with `npm pack`, unless they are there, and check them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in SOURCES:
        path = folder / source.file
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", source.package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != source.sha256:
            raise SystemExit(f"{path} has checksum {found}, expected {source.sha256}")
        paths.append(path)
    return paths


def styles_of(source: Source) -> str:
    """The pencil drawings are a filter's, over the renders."""
    return f"{source.style}; pencil drawings made of it" if source.style == "3d" else source.style


def attribution() -> str:
    """ATTRIBUTION.md: what the weights learned from."""
    lines = [
        "# Attribution",
        "",
        "The weights in this folder were trained on pictures composed from these icon sets. No picture is included.",
        "",
        "| style | art | licence | package | SHA-256 |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {styles_of(s)} | [{s.art}]({s.home}) | {s.licence} | npm `{s.package}` | `{s.sha256}` |" for s in SOURCES]
    lines += [
        "",
        "The Apache License 2.0 is the file LICENSE at the root of the repository. The MIT licence reads:",
        "",
        MIT,
        "",
        f"The {len(THINGS)} icons used of each set: " + ", ".join(t.name for t in THINGS) + ".",
    ]
    return "\n".join(lines) + "\n"
