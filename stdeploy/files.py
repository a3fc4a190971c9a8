"""Files that appear whole or not at all, and the checksum that names their source."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stdeploy.errors import UserError

_HINTS = {
    errno.ENOSPC: "free some space or write elsewhere with -o",
    errno.EFBIG: "raise the file size limit (ulimit -f) or write elsewhere with -o",
    errno.EDQUOT: "free some of your quota or write elsewhere with -o",
}


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises UserError where the folder does not exist or cannot be written, or the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target} is a folder, not a file", hint="name a file with -o")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(target: Path, error: OSError) -> UserError:
    hint = _HINTS.get(error.errno or 0, "choose a writable path with -o")
    return UserError(f"cannot write {target}: {error.strerror or error}", hint=hint)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_folder(path: Path | str, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on any error it is removed.

    An existing `path` is replaced where it holds the file `marker`, so that it was written by this function before.
    Raises UserError where it is anything else, or cannot be written.
    """
    target = Path(path)
    require_replaceable(target, marker)
    try:
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.absolute().parent)
        )
    except OSError as error:
        raise _cannot_write(target, error) from error
    replaced = temporary.with_suffix(".old")
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if target.exists():
            os.replace(target, replaced)
        os.replace(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        for left in (temporary, replaced):
            shutil.rmtree(left, ignore_errors=True)


def require_replaceable(folder: Path, marker: str) -> None:
    """UserError where `folder` is there and not one that atomic_folder wrote with `marker`."""
    if folder.exists() and not (folder / marker).is_file():
        kind = "a folder of something else" if folder.is_dir() else "a file"
        raise UserError(f"{folder} exists and is {kind}", hint="name a new folder with -o")
