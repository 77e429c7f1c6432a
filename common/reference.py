"""What generated images are measured against: real images, or their saved statistics."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.data import CIFAR10_NAMES, load_images
from common.errors import UserError
from common.feature_store import FeatureStore
from common.files import sha256
from common.image_sets import StoredImages, load_image_set
from common.metrics import Statistics, load_statistics, save_statistics, statistics

FITS = ("resize", "crop")


@dataclass(frozen=True)
class Reference:
    """Either `images`, or the `statistics` of a file, which give FID alone. `sha256` is of pixels or file."""

    name: str
    sha256: str
    images: StoredImages | None = None
    statistics: Statistics | None = None

    @property
    def count(self) -> int | None:
        return self.images.count if self.images else None


def open_reference(
    what: str, name: str | None, data_dir: Path, fit: str | None = None, image_size: int = 32
) -> Reference:
    """`what`: one of `CIFAR10_NAMES` (in `data_dir`), an image folder, or an .npz with `mu` and `sigma`.

    `fit`: one of `FITS`, how the pictures of a folder are brought to `image_size`, as they are for training; without,
    they are taken as they are. Nothing is extracted yet. Raises UserError for what is missing, damaged or of another
    kind.
    """
    if fit and (what in CIFAR10_NAMES or not Path(what).is_dir()):
        raise UserError(f"--fit is for the pictures of a folder, and {what} is none")
    if what not in CIFAR10_NAMES and (name or Path(what).name) in CIFAR10_NAMES:
        raise UserError(f"{what} cannot be called {name or Path(what).name}: give it another --reference-name")
    if what in CIFAR10_NAMES:
        images = StoredImages(what, load_images(what, data_dir).images)
    elif Path(what).is_dir():
        images = load_fitted(Path(what), fit, image_size) if fit else load_image_set(Path(what))
    else:
        if not Path(what).is_file():
            raise UserError(f"there is no reference {what!r}: give {', '.join(CIFAR10_NAMES)}, a folder or an .npz")
        return Reference(name or Path(what).name, sha256(what), statistics=load_statistics(what))
    return Reference(name or images.name, images.sha256, images)


def load_fitted(folder: Path, fit: str, image_size: int) -> StoredImages:
    """The pictures of an image folder, to the bit as they train a model of this size; the name says how."""
    name = f"{folder.resolve().name}, {'cropped' if fit == 'crop' else 'resized'}"
    return StoredImages(name, load_images("folder", folder, image_size, crop=fit == "crop").images)


def reference_features(images: StoredImages, store: FeatureStore) -> tuple[Tensor, Statistics]:
    """The features of a reference and their statistics, which are kept beside the features in the store.

    The statistics' file has the layout that `load_statistics` reads: it can serve as a reference elsewhere.
    """
    features = store.features(images, images.count).values
    path = store.place(images) / "statistics.npz"
    try:
        return features, load_statistics(path)
    except UserError:  # not there yet, or damaged
        values = statistics(features)
        save_statistics(path, values)
        return features, values
