"""The preview grid of a training run: always the same noise, so that progress shows from one picture to the next."""

import torch
from PIL import Image

from common.device import Precision
from common.images import image_grid, to_uint8
from common.sampling import SamplingSettings, draw_blocks
from common.unet import UNet

COLUMNS = 10
ROWS = 4


def preview_grid(network: UNet, settings: SamplingSettings, precision: Precision) -> Image.Image:
    """Forty samples of seed 0, the classes in turn: of ten classes each fills a column."""
    classes = range(network.config.num_classes)
    batches = draw_blocks(network, 0, 0, COLUMNS * ROWS, classes, settings, precision=precision)
    return image_grid(to_uint8(torch.cat([batch.images for batch in batches])), COLUMNS)
