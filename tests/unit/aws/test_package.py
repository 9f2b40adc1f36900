"""The function's package: the same bytes wherever and however it is built."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import docferry
from docferry.aws import package
from docferry.aws.package import build
from docferry.errors import DocferryError

_BUILD = """
import os, sys
os.umask(int(sys.argv[1], 8))
from docferry.aws.package import build
sys.stdout.buffer.write(build("arm64", dependencies=False).content)
"""


def _built_elsewhere(folder: Path, umask: str, **environment: str) -> bytes:
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", _BUILD, umask],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def _entries(content: bytes) -> list[zipfile.ZipInfo]:
    return zipfile.ZipFile(io.BytesIO(content)).infolist()


def test_the_same_bytes_from_any_directory_umask_zone_and_hash_seed(tmp_path: Path) -> None:
    one = _built_elsewhere(tmp_path / "a", "022", TZ="UTC", PYTHONHASHSEED="1", LC_ALL="C")
    other = _built_elsewhere(tmp_path / "b", "077", TZ="Asia/Tokyo", PYTHONHASHSEED="2", LC_ALL="C.UTF-8")
    assert one == other


def test_it_holds_docferry_and_no_bytecode() -> None:
    names = [entry.filename for entry in _entries(build(dependencies=False).content)]
    assert names == sorted(names)
    assert {
        "docferry/aws/cloudformation/database.yaml",
        "docferry/aws/host/setup.sh",
        "docferry/capture/sql/session.sql",
        "docferry/cli/__init__.py",
        "docferry-requirements.txt",
    } <= set(names)
    sources = {
        path.relative_to(Path(docferry.__file__).parents[1]).as_posix()
        for path in Path(docferry.__file__).parent.rglob("*.py")
    }
    assert sources <= set(names)
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


def test_times_modes_and_compression_are_fixed() -> None:
    for entry in _entries(build(dependencies=False).content):
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert entry.external_attr >> 16 == 0o100644
        assert (entry.create_system, entry.compress_type) == (3, zipfile.ZIP_STORED)


def test_the_package_runs_without_the_checkout(tmp_path: Path) -> None:
    """From the zip alone, as Lambda has it, what the command line and the template need is there."""
    with zipfile.ZipFile(io.BytesIO(build(dependencies=False).content)) as archive:
        archive.extractall(tmp_path)
    code = (
        "import docferry; print(docferry.__file__); from docferry.cli import docferry as f; f.main(['aws', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_the_wheels_are_those_of_the_functions_processors() -> None:
    """The one test that downloads: both times the same bytes, and libraries for arm64 whatever this machine is."""
    one, other = build("arm64"), build("arm64")
    assert one.sha256 == other.sha256
    entries = _entries(one.content)
    libraries = [entry for entry in entries if entry.filename.endswith(".so")]
    assert any(entry.filename.startswith("psycopg_binary/") for entry in libraries)
    assert all("aarch64" in entry.filename for entry in libraries if "cpython" in entry.filename)
    assert all(entry.external_attr >> 16 == 0o100755 for entry in libraries)
    names = {entry.filename for entry in entries}
    assert {"psycopg/__init__.py", "yaml/__init__.py", "aws_lambda_powertools/__init__.py"} <= names
    assert not any(name.startswith(("boto3/", "botocore/", "click/", "rich/")) for name in names)
    assert sum(entry.file_size for entry in entries) < 100 * 2**20, "Lambda takes 250 MiB"


def test_wheels_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(package, "_BUNDLED", ("psycopg-binary",))
    with pytest.raises(DocferryError, match=r"no wheels for x86_64 and Python 3\.13") as refused:
        build("x86_64")
    assert "psycopg-binary==" in refused.value.remedy
