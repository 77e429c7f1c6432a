"""Files that are never half written."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from common.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on leaving without an exception it takes the place of `path`.

    The data reaches the disk before the name does, so a kill or a power cut at any moment leaves the old file or the
    new one. Missing parent folders are made. On an exception the temporary file is removed and `path` is as it was.

    Raises UserError where the file cannot be written (no permission, a folder in its place, a full disk).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files that only their owner may read; a finished file gets what the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensor_file(path: str | Path, content: dict) -> None:
    """`torch.save`, atomically. Equal contents give equal bytes: given a path, torch writes its name into the file."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def sha256(path: str | Path) -> str:
    """The file's SHA-256 as hexadecimal digits, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensor_file(path: str | Path, what: str, load: Callable, **options):
    """`load(path, **options)`, with any damage reported as a UserError that says `what` the file should have been.

    torch and safetensors raise a dozen kinds of exception for a truncated or foreign file; to the user they are one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no {what} at {path}")
    try:
        return load(path, **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a readable {what} ({reason})") from None


def canonical_json(value) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
