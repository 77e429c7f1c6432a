"""The two representations of an image, float in [-1, 1] inside and uint8 at the edges, and picture files."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.utils import make_grid

from common.files import write_bytes


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8 in [0, 255]: rounded to the nearest level, what lies outside clipped."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def require_uint8(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, not {images.dtype}: to_uint8 makes them so")


def image_grid(images: Tensor, columns: int, padding: int = 2) -> Image.Image:
    """A grid picture of uint8 images (N, 3, H, W), row by row, on white. Raises TypeError for floats."""
    require_uint8(images)
    grid = make_grid(images.cpu(), nrow=columns, padding=padding, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def enlarged(picture: Image.Image, factor: int) -> Image.Image:
    """Nearest neighbour: every pixel stays a sharp square."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def open_rgb(file: str | Path) -> Image.Image:
    """A picture file as upright RGB; what is transparent becomes white.

    Raises what Pillow raises for a damaged file, and ValueError for 32-bit pixels, which have no largest value.
    """
    with Image.open(file) as image:
        has_16_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
        if image.mode in ("I", "F") and not has_16_bits:
            raise ValueError(f"pixels of mode {image.mode}")
        image = ImageOps.exif_transpose(image)
        if has_16_bits:
            # Pillow's own conversion clips at 255 instead of scaling.
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            # Converting a transparent image to RGB directly would show whatever colour hides behind the transparency.
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def through_jpeg(image: Tensor, quality: int = 75) -> Tensor:
    """One uint8 image (3, H, W) compressed and decompressed in memory, with 4:2:0 chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1)


def png_bytes(picture: Image.Image, **options) -> bytes:
    """The picture as a PNG file; `options` are those of Pillow's PNG writer."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Writes a PNG atomically, whatever the name's ending."""
    write_bytes(path, png_bytes(picture))


def npz_bytes(images: Tensor, labels: Tensor | None, settings: dict) -> bytes:
    """An `.npz` file of uint8 images (N, 3, H, W): `arr_0` (uint8, N x H x W x 3), `labels` and `settings` (JSON).

    Images without labels have the label -1. Equal arguments give equal bytes. Raises TypeError for floats.
    """
    require_uint8(images)
    labels = torch.full((len(images),), -1) if labels is None else labels
    buffer = io.BytesIO()
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    np.savez(buffer, arr_0=pixels, labels=labels.cpu().numpy(), settings=json.dumps(settings))
    return buffer.getvalue()
