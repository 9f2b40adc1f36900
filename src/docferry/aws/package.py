"""The function's package: a zip of docferry and what it needs, the same bytes for the same input on every machine.

Names are sorted, times and modes fixed, versions those of the running environment, wheels those of the function's
processors; and nothing is compressed, because compressors differ between machines while Lambda does not care.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import docferry
from docferry.aws.template import RUNTIME
from docferry.errors import DocferryError

__all__ = ["Architecture", "Package", "build"]

Architecture: TypeAlias = Literal["arm64", "x86_64"]

_MACHINES: Final = {"arm64": "aarch64", "x86_64": "x86_64"}
# What the runtime's Amazon Linux 2023 (glibc 2.34) can load.
_GLIBCS: Final = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
# boto3 is in the runtime; click and rich are for the command line, which the function has not.
_BUNDLED: Final = ("aws-lambda-powertools", "jmespath", "psycopg", "psycopg-binary", "PyYAML", "typing_extensions")
# The host's environment, of the same versions.
_FOR_HOST: Final = (*_BUNDLED, "boto3", "click", "rich")
_REQUIREMENTS: Final = "docferry-requirements.txt"
_OURS: Final = (".py", ".sql", ".sh", ".yaml")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_PATIENCE: Final = 600


@dataclass(frozen=True)
class Package:
    """`content`: the zip's bytes. `sha256`: theirs, in hexadecimal."""

    content: bytes
    architecture: Architecture
    files: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def build(architecture: Architecture = "arm64", *, dependencies: bool = True) -> Package:
    """Build the package for a function on these processors. Without `dependencies` docferry alone: for emulators, whose
    functions run in the environment at hand. Raises DocferryError when wheels cannot be had."""
    files = dict(_own_files())
    files[_REQUIREMENTS] = "".join(f"{name}=={found}\n" for name in _FOR_HOST if (found := _version(name))).encode()
    if dependencies:
        files.update(_wheel_files(architecture))
    return Package(_zip(files), architecture, len(files))


def _own_files() -> Iterator[tuple[str, bytes]]:
    root = Path(docferry.__file__).parent
    for path in root.rglob("*"):
        if path.is_file() and (path.suffix in _OURS or path.name == "py.typed"):
            yield path.relative_to(root.parent).as_posix(), path.read_bytes()


def _wheel_files(architecture: Architecture) -> Iterator[tuple[str, bytes]]:
    pinned = [f"{name}=={_needed(name)}" for name in _BUNDLED]
    with tempfile.TemporaryDirectory(prefix="docferry-wheels-") as folder:
        _download(pinned, architecture, folder)
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if not name.endswith(("/", ".pyc", ".dist-info/RECORD")):
                        yield name, archive.read(name)


def _download(requirements: list[str], architecture: Architecture, folder: str) -> None:
    platforms = [f"--platform={glibc}_{_MACHINES[architecture]}" for glibc in _GLIBCS]
    python = RUNTIME.removeprefix("python")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms),
        *("--dest", folder, *requirements),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise DocferryError(
            f"the wheels of the package did not arrive within {_PATIENCE} s", remedy="Check the network; try again."
        ) from None
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise DocferryError(
            f"no wheels for {architecture} and Python {python}: {' '.join(reason)}",
            remedy="Check the network and pip's settings; pip has to find these versions in its package index: "
            f"{', '.join(requirements)}.",
        )


def _needed(name: str) -> str:
    found = _version(name)
    if found is None:
        raise DocferryError(
            f"the package needs the version of {name} that is installed here, and none is",
            remedy="Run `pip install 'docferry[aws]'`.",
        )
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, also when this runs on something else
            entry.external_attr = (0o100755 if ".so" in name else 0o100644) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()
