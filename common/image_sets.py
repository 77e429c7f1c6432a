"""What can be measured, and what it can be measured against: samples of a model, image folders, arrays of images."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from common.checkpoint import Checkpoint
from common.device import Precision
from common.errors import UserError
from common.files import is_hidden, readable
from common.images import open_rgb, to_uint8
from common.lineage import student_training_runs
from common.noise import BLOCK_SIZE, derive_seed
from common.sampling import SamplingSettings, draw_blocks
from common.unet import count_values

MODEL_KEYS = (
    *("name", "stage", "checkpoint", "images_sha256", "guide"),
    *("solver", "num_steps", "guidance_scale", "guidance_interval", "guide_scale", "seed", "classes"),
    *("batch_size", "device", "arithmetic", "training_flop", "guide_training_flop", "guide_parameters"),
    *("training_runs", "init_sha256"),
)


class ImageSet(Protocol):
    """Images in a fixed order, read a batch at a time."""

    name: str
    verb: str
    """What reading them is, for a progress bar."""
    identity: dict
    """What the images are a function of, as JSON values."""
    count: int | None
    """None where there is no end."""
    image_size: tuple[int, int]
    """Height and width in pixels."""

    def batches(self, start: int, count: int) -> Iterator[tuple[Tensor, int]]:
        """Images start ... start + count - 1 as uint8 (n, 3, H, W), and the network evaluations behind each of them."""
        ...

    def describe(self) -> dict:
        """What a result says of them: the same keys for every kind of images, None where they say nothing."""
        ...


class ModelSamples:
    """The samples of a seed: endless, and each the same however many are drawn."""

    verb = "sampling"
    count = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: SamplingSettings,
        seed: int,
        classes: Sequence[int],
        precision: Precision,
        batch_size: int = BLOCK_SIZE,
    ):
        self.checkpoint, self.settings, self.seed, self.classes = checkpoint, settings, seed, list(classes)
        self.precision, self.batch_size = precision, batch_size
        self.name = str(checkpoint.path)
        self.image_size = tuple(checkpoint.model.config.image_shape[1:])
        self.identity = {
            "checkpoint": checkpoint.sha256,
            **({"guide": checkpoint.guide.sha256} if checkpoint.guide else {}),
            "settings": settings.to_dict(),
            "seed": seed,
            "classes": self.classes,
            # Rounding depends on these; a part of one run must not stand beside a part of another.
            "device": precision.device.type,
            "precision": precision.name,
            "batch_size": batch_size,
        }

    def batches(self, start: int, count: int) -> Iterator[tuple[Tensor, int]]:
        batches = draw_blocks(
            self.checkpoint.model,
            self.seed,
            start,
            count,
            self.classes,
            self.settings,
            precision=self.precision,
            batch_size=self.batch_size,
            guide=self.checkpoint.guide_model,
        )
        for batch in batches:
            yield to_uint8(batch.images), batch.network_calls

    def describe(self) -> dict:
        checkpoint, guide = self.checkpoint, self.checkpoint.guide
        every_class = self.classes == checkpoint.class_turns
        return {
            "name": checkpoint.path.name,
            "stage": checkpoint.stage,
            "checkpoint": checkpoint.sha256,
            "images_sha256": None,
            "guide": guide.sha256 if guide else None,
            "guide_scale": self.settings.guide_scale,
            **self.settings.to_dict(),
            "seed": self.seed,
            "classes": None if every_class else [checkpoint.class_names[number] for number in self.classes],
            "batch_size": self.batch_size,
            "device": self.precision.device.type,
            "arithmetic": self.precision.name,
            "training_flop": checkpoint.header["training_flop"],
            "guide_training_flop": guide.header["training_flop"] if guide else None,
            "guide_parameters": count_values(guide.model) if guide else None,
            "training_runs": student_training_runs(checkpoint.header),
            "init_sha256": checkpoint.header.get("initial", {}).get("sha256"),
        }


class StoredImages:
    """Images that exist already. `sha256` is that of their pixels, in order, whatever the files that they came in."""

    verb = "reading"

    def __init__(self, name: str, images: "Tensor | PictureFiles", seed: int | None = None):
        """`images`: uint8 (N, 3, H, W), N > 0, or what gives such a tensor for a slice; `seed`: of a random subset."""
        self.name, self.images, self.count, self.seed = name, images, len(images), seed
        self.image_size = tuple(images[:1].shape[2:])
        digest = hashlib.sha256(repr(self.image_size).encode())
        self.blocks: list[bytes] = []  # of each batch: features must be of the pixels that name them
        bar = tqdm(total=self.count, desc=f"reading {name}", unit="image", leave=False)
        with bar:
            for batch, _ in self.batches(0, self.count):
                digest.update(batch.numpy())
                self.blocks.append(hashlib.sha256(batch.numpy()).digest())
                bar.update(len(batch))
        self.sha256 = digest.hexdigest()
        self.identity = {"pixels": self.sha256}

    def batches(self, start: int, count: int) -> Iterator[tuple[Tensor, int]]:
        """Raises UserError where files have changed since they were first read."""
        for first in range(start, start + count, BLOCK_SIZE):
            last = min(first + BLOCK_SIZE, start + count)
            batch = self.images[first:last].contiguous()
            block, position = divmod(first, BLOCK_SIZE)
            whole = position == 0 and last == min(first + BLOCK_SIZE, self.count)
            if whole and block < len(self.blocks) and hashlib.sha256(batch.numpy()).digest() != self.blocks[block]:
                raise UserError(f"the images of {self.name} have changed while they were measured")
            yield batch, 0

    def describe(self) -> dict:
        return dict.fromkeys(MODEL_KEYS) | {"name": self.name, "images_sha256": self.sha256, "seed": self.seed}


class PictureFiles:
    """Picture files as a sequence of images uint8 (N, 3, H, W): a slice decodes its files.

    Nothing is resized, since that alone moves FID (Parmar et al. 2022): all must have the same size.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = files

    @classmethod
    def below(cls, folder: Path) -> "PictureFiles":
        """Every picture in a folder and its sub-folders, linked ones too, that is not hidden, in sorted order.

        Raises UserError where there is none.
        """
        # As torchvision's ImageFolder does, by which training reads the same folder; Path.rglob passes links over.
        paths = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
        pictures = (path for path in paths if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
        files = sorted(path for path in pictures if not is_hidden(path, folder))
        if not files:
            raise UserError(f"there are no pictures in {folder}")
        return cls(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | Tensor) -> "Tensor | PictureFiles":
        """The images of a slice; for a tensor of positions, those files."""
        if isinstance(index, Tensor):
            return PictureFiles([self.files[position] for position in index.tolist()])
        pixels = np.stack([self._decode(file) for file in self.files[index]])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _decode(self, file: Path) -> np.ndarray:
        picture, first = self._open(file), self._first_size
        if picture.size != first:
            raise UserError(
                f"{file} is {picture.width} x {picture.height}, {self.files[0]} is {first[0]} x {first[1]}: "
                "the pictures of a folder must have one size (--fit is for those of a --reference)"
            )
        return np.asarray(picture)

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        return self._open(self.files[0]).size

    def _open(self, file: Path) -> Image.Image:
        try:
            return open_rgb(file)
        except MemoryError:
            raise
        except Exception:  # Pillow's decoders raise a dozen kinds for damaged files
            raise UserError(f"cannot read the picture {file}") from None


def load_image_set(path: Path, count: int | None = None, seed: int = 0) -> StoredImages:
    """The images in a folder, or in an .npz with `arr_0`, uint8 (N, H, W, 3), as `sample.py` writes it.

    With `count`, a random subset of that size, since the files of a folder often come class by class.
    Raises UserError for what is missing, empty, damaged or of another kind, and for fewer images than `count`.
    """
    images = PictureFiles.below(path) if path.is_dir() else read_npz(path)
    if count is not None and count > len(images):
        raise UserError(f"{path} has {len(images):,} images, fewer than the {count:,} that were asked for")
    subset = count is not None and count < len(images)
    if subset:
        generator = torch.Generator().manual_seed(derive_seed("subset", seed))
        images = images[torch.randperm(len(images), generator=generator)[:count].sort().values]
    return StoredImages(path.resolve().name, images, seed if subset else None)


def read_npz(path: Path) -> Tensor:
    """`arr_0` of an .npz as uint8 (N, 3, H, W)."""
    with readable(path, ".npz of images"), np.load(path, allow_pickle=False) as file:
        pixels = file["arr_0"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not len(pixels):
        raise UserError(f"{path}: arr_0 must be uint8 (N, height, width, 3), not {pixels.dtype} {pixels.shape}")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
