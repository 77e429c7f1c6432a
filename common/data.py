"""Image data sets, held as uint8 on the device; a batch is a gather and a flip."""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import is_image_file
from tqdm import tqdm

from common import shapes
from common.augmentation import flip
from common.errors import UserError
from common.files import atomic_write, is_hidden
from common.images import open_rgb, through_jpeg, to_float

CIFAR10_NAMES = ("cifar10", "cifar10-jpeg")
DATA_SETS = (*CIFAR10_NAMES, "folder", "shapes")
SHAPES_COUNT = 10_000
CIFAR10_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class ImageData:
    """Labelled images: `images` uint8 (N, 3, H, W), `labels` int64 (N,), and the name of each class."""

    images: Tensor
    labels: Tensor
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor) -> "ImageData":
        return ImageData(self.images[indices], self.labels[indices], self.class_names)

    def to(self, device: torch.device) -> "ImageData":
        return ImageData(self.images.to(device), self.labels.to(device), self.class_names)

    def sha256(self) -> str:
        """Of the pixels and the labels: names the data in what was trained on it."""
        digest = hashlib.sha256(self.images.cpu().numpy())
        digest.update(self.labels.cpu().numpy())
        return digest.hexdigest()

    def batch(self, indices: Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Float images (n, 3, H, W) in [-1, 1], channels-last, mirrored where `flips` (n,) is true, and labels (n,)."""
        images = self.images[indices] if flips is None else flip(self.images[indices], flips)
        return to_float(images.contiguous(memory_format=torch.channels_last)), self.labels[indices]


def load_images(name: str, path: str | Path, image_size: int = 32, crop: bool = False) -> ImageData:
    """Loads one of `DATA_SETS` completely.

    - `cifar10`: the 50,000 training images in the folder `path`, downloaded and checksum-verified by torchvision.
    - `cifar10-jpeg`: the same, each compressed as JPEG (quality 75, 4:2:0 chroma), class by class, as if they came from
      an image folder.
    - `folder`: every image in `path/<class name>/`, in any mode but 32-bit pixels, of any size. Resized to `image_size`
      on its shorter side and cropped to the centre; with `crop`, the centre is cropped without resizing. Decoded once,
      then cached.
    - `shapes`: 10,000 drawn shapes, always the same; `path` is not used.

    Raises UserError for data that is missing, unreadable or empty, and for `crop` of images that all have one size.
    """
    if crop and name != "folder":
        raise UserError(f"--crop needs an image folder (--data folder): {name} has images of one size")
    if name == "cifar10":
        return _load_cifar10(Path(path), image_size)
    if name == "cifar10-jpeg":
        return _compressed(_load_cifar10(Path(path), image_size))
    if name == "folder":
        return _load_folder(Path(path), image_size, crop)
    if name == "shapes":
        images, labels = shapes.draw_shapes(SHAPES_COUNT, image_size, seed=0)
        return ImageData(torch.from_numpy(images), torch.from_numpy(labels), shapes.CLASS_NAMES)
    raise UserError(f"there is no data set {name!r}: choose one of {', '.join(DATA_SETS)}")


def split_held_out(data: ImageData, fraction: float) -> tuple[ImageData, ImageData]:
    """(training, held out): the last `fraction` of each class, in the data set's order, is never trained on."""
    held_out = torch.zeros(len(data), dtype=torch.bool)
    for label in range(len(data.class_names)):
        members = torch.nonzero(data.labels == label).flatten()
        held_out[members[len(members) - round(fraction * len(members)) :]] = True
    return data.select(torch.nonzero(~held_out).flatten()), data.select(torch.nonzero(held_out).flatten())


def images_behind(path: Path, header: dict, folder: Path | None = None) -> tuple[ImageData, ImageData]:
    """(training, held out) of the checkpoint at `path`, by its header; `folder`, where they have been moved.

    Of a checkpoint of JPEG files it may be the folder of CIFAR-10 itself, which is then compressed in memory; of
    one of CIFAR-10 that was compressed in memory, a folder of such files. Raises UserError where other images are found
    there than it was trained on.
    """
    arguments = header["arguments"]
    hint = "" if folder else ": give --data-dir"
    folder, name = folder or Path(arguments["data_dir"]), arguments["data"]
    if name == "folder" and not folder.is_dir():
        raise UserError(f"the images that trained {path} are not in {folder}{hint}")
    if name == "folder" and (folder / CIFAR10.base_folder).is_dir():
        name = "cifar10-jpeg"
    elif name == "cifar10-jpeg" and holds_pictures(folder):
        name = "folder"
    crop = arguments["crop"] and name == "folder"
    data = load_images(name, folder, header["config"]["image_size"], crop)
    if data.sha256() != header["images_sha256"]:
        raise UserError(f"the images in {folder} are not those that trained {path}{hint}")
    return split_held_out(data, arguments["val_fraction"])


def _load_cifar10(path: Path, image_size: int) -> ImageData:
    if image_size != 32:
        raise UserError(f"CIFAR-10 images are 32 x 32, the model wants {image_size} x {image_size}")
    if holds_pictures(path):  # what is unpacked among them would be one of their classes
        raise UserError(
            f"{path} holds pictures, and CIFAR-10 is not to be unpacked there: give another --data-dir, or ask for "
            f"the pictures (--data folder, --reference {path})"
        )
    try:
        data = CIFAR10(path, train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"CIFAR-10 is not in {path} and could not be downloaded ({error}): put cifar-10-python.tar.gz, the python "
            f"version of {CIFAR10_PAGE}, into {path} and run this again"
        ) from None
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageData(images, torch.tensor(data.targets), list(data.classes))


def holds_pictures(path: Path) -> bool:
    """Whether there are pictures in a folder or its sub-folders, but for hidden ones, and CIFAR-10 is not."""
    if (path / CIFAR10.base_folder).is_dir() or (path / CIFAR10.filename).is_file():
        return False
    files = (file for pattern in ("*", "*/*") for file in path.glob(pattern))
    return any(is_image_file(file.name) and file.is_file() and not is_hidden(file, path) for file in files)


def _compressed(data: ImageData) -> ImageData:
    """Every image through JPEG, the images of each class together and in the order that they had."""
    data = data.select(data.labels.argsort(stable=True))
    compressed = [through_jpeg(image) for image in tqdm(data.images, desc="JPEG", unit="image", leave=False)]
    return ImageData(torch.stack(compressed), data.labels, data.class_names)


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


def _load_folder(path: Path, image_size: int, crop: bool) -> ImageData:
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
    return ImageData(images, labels, folder.classes)


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
