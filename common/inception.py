"""The network behind every metric, TF Inception-2015-12-05 as torch-fidelity holds it, made fast and read safely."""

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d, FeatureExtractorInceptionV3

import common.device  # noqa: F401 (which keeps fp32 from being TF32 on a GPU)
from common.errors import UserError
from common.files import readable

FEATURE_COUNT = 2048
BATCH_SIZES = {"cpu": 16, "cuda": 128}
"""Images of one forward pass. On a CPU small batches stay in the caches (`benchmarks/feature_extraction.py`)."""
MEMORY_FORMATS = {"cpu": torch.channels_last, "cuda": torch.contiguous_format}
"""Without TF32, cuDNN is faster with each channel's pixels side by side."""


class Inception:
    """Turns uint8 images into the 2048 features of Inception's last pooling layer, from which every metric is computed.

    In fp32 and with batch norm folded into the convolutions: the features are torch-fidelity's to rounding. `sha256`
    names the file of the weights.
    """

    def __init__(self, weights: str | Path | None, device: torch.device):
        """`weights`: a file in torch-fidelity's format; without one, torch-fidelity's own is downloaded once.

        Raises UserError for a file that is missing, damaged or of another network, and where the download fails.
        """
        self.device = device
        network, self.sha256 = read_network(Path(weights) if weights else downloaded_weights())
        classifier = network.fc.weight.detach()
        self.classifier = classifier.clone() if classifier.any() else None
        """(1008, 2048), for the Inception Score; None where the file holds zeros in its place."""
        self.network = fold_batch_norm(network).to(device=device, memory_format=MEMORY_FORMATS[device.type])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, H, W) of any size to float32 features (N, 2048) on the CPU."""
        batches = images.to(self.device).split(BATCH_SIZES[self.device.type])
        return torch.cat([self.network(batch)[0] for batch in batches]).cpu()


def read_network(path: str | Path) -> tuple[FeatureExtractorInceptionV3, str]:
    """The network in evaluation mode, and the SHA-256 of the file that its weights are from."""
    with readable(path, "file of Inception weights") as path:
        content = path.read_bytes()
        # torch-fidelity reads with weights_only=False, which runs any code in a file: the same bytes first, safely.
        torch.load(io.BytesIO(content), weights_only=True)
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], io.BytesIO(content))
    except (AttributeError, TypeError, RuntimeError):
        raise UserError(f"the weights in {path} are not those of torch-fidelity's Inception") from None
    return network, hashlib.sha256(content).hexdigest()


def downloaded_weights() -> Path:
    """torch-fidelity's own file in torch's cache, downloaded where it is not there yet and checked by its hash."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download the Inception weights ({error}): fetch {URL_INCEPTION_V3} elsewhere and give the "
                "file with --inception-weights"
            ) from None
    return path


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Puts the scale and shift of each batch norm into its convolution: the same function, less memory traffic."""
    for module in network.modules():
        if isinstance(module, BasicConv2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return network
