"""Image data sets, held as uint8 on the device; a batch is a gather and a flip."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import is_image_file
from tqdm import tqdm

from common import shapes
from common.augmentation import flip
from common.errors import UserError
from common.files import is_hidden
from common.image_folder import read_image_folder
from common.images import through_jpeg, to_float

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
        return ImageData(*read_image_folder(Path(path), image_size, crop))
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
    if name == "folder" and holds_cifar10(folder):
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


def holds_cifar10(path: Path) -> bool:
    """Whether the data set is in a folder, unpacked or as its archive."""
    return (path / CIFAR10.base_folder).is_dir() or (path / CIFAR10.filename).is_file()


def holds_pictures(path: Path) -> bool:
    """Whether there are pictures in a folder or its sub-folders, but for hidden ones, and CIFAR-10 is not."""
    if holds_cifar10(path):
        return False
    files = (file for pattern in ("*", "*/*") for file in path.glob(pattern))
    return any(is_image_file(file.name) and file.is_file() and not is_hidden(file, path) for file in files)


def _compressed(data: ImageData) -> ImageData:
    """Every image through JPEG, the images of each class together and in the order that they had."""
    data = data.select(data.labels.argsort(stable=True))
    compressed = [through_jpeg(image) for image in tqdm(data.images, desc="JPEG", unit="image", leave=False)]
    return ImageData(torch.stack(compressed), data.labels, data.class_names)
