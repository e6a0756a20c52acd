# SPDX-License-Identifier: Apache-2.0
"""Replacing a file: whole or not at all, and nothing but a file."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.rnnkern-[0-9a-f]{16}\.tmp")
_IRREGULAR = "is a device, pipe or socket, expected a regular file"


def replace(path: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> None:
    """Have ``path`` hold what ``write`` writes: at every moment it is the old file or the new one.

    What is written goes to a temporary file in the same directory, which then takes the place of
    the old one. Links are followed; the old file's mode and, where allowed, its owner are kept.
    Temporary files that killed processes left in the directory are removed.

    Raises:
        OSError: ``path`` is no regular file or may not be written, or writing failed. The old file
            is still there then.

    """
    try:
        _replace(path, write)
    except OSError as error:
        # The temporary file's name would say nothing to whoever reads this.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _replace(path: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> None:
    old = _old(path)
    target = Path(os.path.realpath(path))
    _sweep(target.parent)
    # Where there is no file yet, the system applies its rules for new files to the usual mode.
    temporary, file = _open_temporary(target.parent, 0o666 if old is None else 0o600)
    try:
        with file:
            write(file)
            file.flush()
            if old is not None:
                for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
                    with suppress(PermissionError):
                        os.fchown(file.fileno(), owner, group)
                os.fchmod(file.fileno(), old.st_mode & 0o777)
            os.fsync(file.fileno())
            temporary.replace(target)  # while it is locked, so that nobody sweeps it away
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


def _old(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What stands at ``path``, which must be a file that can be replaced; ``None`` for nothing."""
    try:
        old = os.stat(path)  # noqa: PTH116  a path without a meaning of its own stays as given
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected a file")
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, _IRREGULAR)
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "is a file that may not be written")
    return old


def _open_temporary(directory: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new file, locked until it is closed, which tells ``_sweep`` that it is in use."""
    while True:
        path = directory / f".rnnkern-{secrets.token_hex(8)}.tmp"
        file = open(  # noqa: SIM115  the caller closes it
            path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, mode)
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(file.fileno()).st_nlink > 0
        except BlockingIOError:
            mine = False
        except OSError:  # where there are no locks, nothing is swept either
            mine = True
        if mine:
            return path, file
        file.close()  # it was swept away before it was locked


def _sweep(directory: Path) -> None:
    """Remove the temporary files that nobody has locked: their processes are dead."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open_regular(entry.path) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)  # noqa: PTH108


def _sync_directory(directory: Path) -> None:
    """Have the new name survive a power cut, where the directory may be read."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file to read its bytes; never wait for the other end of a pipe.

    Raises:
        OSError: There is no regular file, or it may not be read.

    """
    file = open(  # noqa: SIM115  the caller closes it
        path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, _IRREGULAR, os.fspath(path))
    return file
