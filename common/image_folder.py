"""A folder of pictures with a sub-folder for each class, decoded once and then cached beside it."""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from common.errors import UserError
from common.files import atomic_write, is_hidden
from common.images import open_rgb


class PictureFolder(ImageFolder):
    """torchvision's, without what is hidden in it: our own cache of a folder in it, `.ipynb_checkpoints`."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: index for index, name in enumerate(names)}

    @staticmethod
    def make_dataset(directory: str, *arguments, **options) -> list[tuple[str, int]]:
        samples = ImageFolder.make_dataset(directory, *arguments, **options)
        return [(name, label) for name, label in samples if not is_hidden(Path(name), Path(directory))]


def read_image_folder(path: Path, image_size: int, crop: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Images uint8 (N, 3, image_size, image_size), labels int64 (N,), and the names of the classes.

    Resized on the shorter side and cropped to the centre; with `crop`, cropped without resizing. Raises UserError for a
    folder without classes or pictures, for pictures that cannot be read, and with `crop` for any that are too small.
    """
    if not path.is_dir():
        raise UserError(f"there is no image folder at {path}")
    path = path.resolve()  # the cache of a linked folder lies beside the folder itself
    try:
        folder = PictureFolder(path)
    except FileNotFoundError as error:
        reason = str(error).split(" Supported extensions")[0].rstrip(".")
        needed = "one sub-folder per class, or a single one for images without classes"
        raise UserError(f"{path} is not an image folder, which has {needed}: {reason}") from None

    # One cache for a folder and a size, beside the folder; it says of which files it was made, by name, size and time.
    cache = path.parent / ".cache" / f"{path.name}-{image_size}{'-crop' * crop}.safetensors"
    fingerprint, labels = _fingerprint(path, folder), torch.tensor(folder.targets)
    images = _read_cache(cache, fingerprint)
    if images is None:
        images = _decode([Path(name) for name, _ in folder.samples], image_size, crop)
        try:
            with atomic_write(cache) as temporary:
                temporary.write_bytes(save({"images": images}, metadata={"files": fingerprint}))
        except UserError as error:
            print(f"the decoded images are not cached: {error}", file=sys.stderr)
    return images, labels, folder.classes


def _fingerprint(path: Path, folder: PictureFolder) -> str:
    """Changes whenever a file of the folder is added, removed, renamed or rewritten."""
    files = []
    for name, _ in folder.samples:
        try:
            status = os.stat(name)
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror}") from None
        files.append((os.path.relpath(name, path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _read_cache(cache: Path, fingerprint: str) -> Tensor | None:
    """The cached images, or None where there are none of exactly these files, or the cache is damaged."""
    try:
        with safe_open(cache, framework="pt") as file:
            return file.get_tensor("images") if (file.metadata() or {}).get("files") == fingerprint else None
    except (OSError, SafetensorError):
        return None


def _decode(files: list[Path], image_size: int, crop: bool) -> Tensor:
    """All files as uint8 (N, 3, size, size). Pillow decodes outside Python's lock, so threads run in parallel."""
    images = np.empty((len(files), 3, image_size, image_size), dtype=np.uint8)
    unreadable, too_small = [], []

    def decode(index: int) -> None:
        try:
            images[index] = _decode_one(files[index], image_size, crop)
        except TooSmallError:
            too_small.append(files[index])
        except MemoryError:
            raise
        except Exception:  # Pillow's decoders raise a dozen kinds for damaged files
            unreadable.append(files[index])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(decode, range(len(files))), total=len(files), desc="decoding images", unit="image"):
            pass
    if unreadable:
        raise UserError(f"cannot read {len(unreadable)} of {len(files)} images: {_first_names(unreadable)}")
    if too_small:
        raise UserError(
            f"{len(too_small)} of {len(files)} images are smaller than {image_size} x {image_size}: "
            f"{_first_names(too_small)}; they can be resized, but not cropped"
        )
    return torch.from_numpy(images)


class TooSmallError(Exception):
    """An image cannot be cropped to the size that is asked for."""


def _first_names(files: list[Path]) -> str:
    names = ", ".join(str(file) for file in sorted(files)[:5])
    return f"{names} and {len(files) - 5} more" if len(files) > 5 else names


def _decode_one(file: Path, image_size: int, crop: bool) -> np.ndarray:
    image = open_rgb(file)
    if crop:
        if min(image.size) < image_size:
            raise TooSmallError
        left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    elif image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)
