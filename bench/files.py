"""Files of a run: written whole or not at all, folders checked before work begins, one process per folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import BenchError

TEMPORARY = ".tmp-"  # how names of unfinished files begin


class FileError(BenchError):
    """A file or folder that cannot be written, or is in use."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        FileError: the folder cannot be written or the disk is full; an older file at `path` is intact.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path whose content replaces `path` when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise FileError(_cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove(path: Path) -> None:
    """Remove a file or a whole folder; one that is gone already is no error.

    Raises:
        FileError: it cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        hint = "nothing else was changed; the same command continues once the folder can be written"
        raise FileError(f"cannot remove {path}: {error.strerror or error}; {hint}") from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a whole folder: fill a hidden sibling, flush it, rename it to `target`. Readers see the old one or the new.

    Raises OSError where it cannot be written; an older folder is intact.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.*"):
        if time.time() - stale.stat().st_mtime > 3600:  # a writer that was killed, not one at work
            shutil.rmtree(stale, ignore_errors=True)
    fresh = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    fresh.mkdir()
    try:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
            _fsync(fresh / name)
        _sync(fresh)
        _put(fresh, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _put(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`; another writer of the same cell may be doing the same, the last one stays."""
    for attempt in range(10):
        old = target.parent / f".{target.name}.{secrets.token_hex(4)}"
        try:
            if target.exists():
                os.rename(target, old)
            os.rename(fresh, target)
        except OSError:
            if old.exists() and not target.exists():
                os.rename(old, target)  # the old record is better than none
            if attempt == 9:
                raise
        else:
            return
        finally:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        _fsync(folder)


def _cannot_write(path: Path, error: OSError) -> str:
    hints = {
        errno.ENOSPC: "free some space or choose another disk with --runs-dir",
        errno.EDQUOT: "free some of the quota or choose another disk with --runs-dir",
        errno.EROFS: "choose a folder that can be written",
        errno.EACCES: "choose a folder that can be written",
        errno.EPERM: "choose a folder that can be written",
    }
    hint = hints.get(error.errno or 0, "what was there before is intact")
    return f"cannot write {path}: {error.strerror or error}; {hint}"


def check_writable(folder: Path, option: str, need_bytes: int = 1 << 20) -> None:
    """Find out before training that a folder cannot be written or its disk is full.

    Raises:
        FileError: one line that names the folder and the option that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{TEMPORARY}{os.getpid()}-probe"
        probe.write_bytes(b"x")
        probe.unlink()
        disk = os.statvfs(folder)
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}; choose another folder with {option}") from error
    free = disk.f_bavail * disk.f_frsize
    if free < need_bytes:
        raise FileError(
            f"{folder} has {free / 1e6:.0f} MB free, the run needs {need_bytes / 1e6:.0f} MB; "
            f"free some space or choose another disk with {option}"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the lock goes with the process, however it ends.

    Raises:
        FileError: another process holds it (the line says which), or the folder cannot be written.
    """
    import fcntl

    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise FileError(_cannot_write(path, error)) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise FileError(
                f"{folder} is being worked on by {holder}; wait for it, or choose another --runs-dir"
            ) from None
        except OSError as error:
            raise FileError(
                f"cannot lock {folder}: {error.strerror}; its file system has no locks, choose another --runs-dir"
            ) from None
        with contextlib.suppress(OSError):  # who holds it is a courtesy; on a full disk it cannot be said
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} since {time.strftime('%H:%M:%S')}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
