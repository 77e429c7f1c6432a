"""Where the project is, and files that are never half written."""

import fcntl
import glob
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from common.errors import UserError
from common.memory import is_lack_of_memory

SECONDS_OF_A_DAY = 24 * 60 * 60
ROOT = Path(__file__).resolve().parent.parent
"""The folder of the project: of the stage scripts, docs/ and checkpoints/."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on leaving without an exception it takes the place of `path`.

    The data reaches the disk before the name does, so a kill or a power cut at any moment leaves the old file or the
    new one. Missing parent folders are made. On an exception the temporary file is removed and `path` is as it was.

    Raises UserError where the file cannot be written (no permission, a folder in its place, a full disk).
    """
    path = Path(path)
    temporary = _temporary(path, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        temporary.touch()
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Says before hours of work, rather than after them, that their result cannot be written: raises UserError."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: nothing can be put into {folder}")


def remove_abandoned(path: Path) -> None:
    """Removes the temporary files for `path` of processes that were killed while they wrote it.

    Whether a process of another machine still runs cannot be seen from here: its file is removed after a day.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        *_, process = left.stem.split(".")
        if process.isdecimal() and left == _temporary(path, int(process)):
            abandoned = int(process) != os.getpid() and not process_exists(int(process))
        else:
            abandoned = time.time() - left.stat().st_mtime > SECONDS_OF_A_DAY
        if abandoned:
            left.unlink(missing_ok=True)


def _temporary(path: Path, process: int) -> Path:
    """The temporary file for `path` of a process of this machine."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{process}.partial")


def process_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def folder_to_oneself(folder: str | Path) -> Iterator[None]:
    """Keeps every other process that asks for the same out of a folder; one that is killed has left it.

    A missing folder is made, and taken away again where nothing was put into it. Raises UserError where another process
    is in there, and where it cannot be made.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is at work in {folder}") from None
    try:
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def save_tensor_file(path: str | Path, content: dict) -> None:
    """`torch.save`, atomically. Equal contents give equal bytes: given a path, torch writes its name into the file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def sha256(path: str | Path) -> str:
    """The file's SHA-256 as hexadecimal digits, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[Path]:
    """Yields `path`; damage that is found while it is read becomes a UserError that says `what` it should have been.

    torch, numpy and safetensors raise a dozen kinds of exception for a truncated or foreign file; to the user they are
    one. So is a file that is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a {what}")
    if not path.is_file():
        raise UserError(f"there is no {what} at {path}")
    try:
        yield path
    except Exception as error:
        if isinstance(error, UserError) or is_lack_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a readable {what} ({reason})") from None


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is one that a tool has hidden there: a cache, a checkpoint, a resource fork."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def canonical_json(value) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
