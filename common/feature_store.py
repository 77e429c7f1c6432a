"""Inception features on disk, in parts: an interrupted extraction goes on, and nothing is extracted twice."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from common.checkpoint import code_version
from common.device import describe_machine
from common.files import atomic_write, canonical_json
from common.image_sets import ImageSet
from common.inception import FEATURE_COUNT, Inception

PART_SIZE = 1024
"""Images of one file: at most so many are lost when the program is killed."""


@dataclass
class Features:
    """The features of the first images of a set, and what it took to make them."""

    values: Tensor
    """(N, 2048), float32."""
    network_calls: float
    """NFE: network evaluations behind one image, by the sampler's count; 0 for images that were not sampled."""
    seconds: float
    """Drawing or reading the images, and extracting, added up over the calls that it took."""
    drawing_seconds: float
    """Of these, those spent on the images."""
    machines: set[str]
    """On which they were made, one day or another."""
    code_versions: set[str]
    """By which."""


class FeatureStore:
    """The features of image sets under one folder, which may be deleted at any time.

    A set's sub-folder is named by the hash of what its features are a function of: the content of the images, or the
    model and how it is run, and the Inception weights. Of the code that drew them it is not: after a change that draws
    other images, delete the folder.
    """

    def __init__(self, folder: Path, inception: Inception):
        self.folder = folder
        self.inception = inception
        self.machine, self.code_version = describe_machine(inception.device), code_version()

    def place(self, images: ImageSet) -> Path:
        """The sub-folder of a set."""
        return self.folder / hashlib.sha256(self._identity(images).encode()).hexdigest()[:16]

    def features(self, images: ImageSet, count: int) -> Features:
        """The features of images 0 ... count - 1 of the set: those on disk, and the others extracted and stored."""
        values = torch.empty(count, FEATURE_COUNT)
        network_calls = seconds = drawing_seconds = 0.0
        machines, code_versions = set(), set()
        reading = tqdm(total=count, desc=images.verb, unit="image", position=0)
        extracting = tqdm(total=count, desc="Inception features", unit="image", position=1)
        with reading, extracting:
            for start in range(0, count, PART_SIZE):
                size = min(PART_SIZE, count - start)
                path = self.place(images) / f"part_{start // PART_SIZE:05d}.safetensors"
                part = self._read(path, images, size)
                if part is None:
                    part = self._extract(images, start, size, reading, extracting)
                    self._write(path, images, part)
                else:
                    for bar in (reading, extracting):  # what was there already says nothing about the time left
                        bar.initial += size
                        bar.update(size)
                values[start : start + size] = part.values
                network_calls += part.network_calls * size
                seconds += part.seconds
                drawing_seconds += part.drawing_seconds
                machines |= part.machines
                code_versions |= part.code_versions
        return Features(values, network_calls / count, seconds, drawing_seconds, machines, code_versions)

    def _extract(self, images: ImageSet, start: int, count: int, reading: tqdm, extracting: tqdm) -> Features:
        values, network_calls, extracting_seconds, begin = [], 0, 0.0, time.perf_counter()
        for batch, calls in images.batches(start, count):
            reading.update(len(batch))
            network_calls += calls * len(batch)
            if batch.is_cuda:  # which has only been told to draw it
                torch.cuda.synchronize(batch.device)
            drawn = time.perf_counter()
            values.append(self.inception(batch))
            extracting.update(len(batch))
            extracting_seconds += time.perf_counter() - drawn
        seconds = time.perf_counter() - begin
        cost = (network_calls / count, seconds, seconds - extracting_seconds)
        return Features(torch.cat(values), *cost, {self.machine}, {self.code_version})

    def _identity(self, images: ImageSet) -> str:
        return canonical_json({"images": images.identity, "inception": self.inception.sha256, "format": 2})

    def _write(self, path: Path, images: ImageSet, part: Features) -> None:
        names = ("network_calls", "seconds", "drawing_seconds")
        cost = {name: getattr(part, name) for name in names}
        with atomic_write(path) as temporary:
            metadata = {"identity": self._identity(images), "cost": canonical_json(cost)}
            metadata |= {"machine": self.machine, "code_version": self.code_version}
            temporary.write_bytes(save({"features": part.values}, metadata=metadata))

    def _read(self, path: Path, images: ImageSet, count: int) -> Features | None:
        """The first `count` of a stored part; None where it is missing, damaged, of another set or too short."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                values = file.get_tensor("features")
        except (OSError, SafetensorError):
            return None
        if metadata.get("identity") != self._identity(images) or len(values) < count:
            return None
        cost, share = json.loads(metadata["cost"]), count / len(values)
        cost = (cost["network_calls"], cost["seconds"] * share, cost["drawing_seconds"] * share)
        return Features(values[:count], *cost, {metadata["machine"]}, {metadata["code_version"]})
