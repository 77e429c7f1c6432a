"""The noise pairs in a folder as a student sees them: what they are of, those that are held out, and batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.augmentation import flip
from common.checkpoint import Checkpoint
from common.errors import UserError
from common.files import canonical_json
from common.lineage import lineage
from common.pair_shards import SHARD_SIZE, read_shard, recipe_of, shard_path, shard_paths
from common.sampling import SamplingSettings
from common.solvers import grid_index, in_words

HELD_OUT_PAIRS = 512
"""At most so many of a set's first pairs are held out, and at most a tenth: as a large set grows they stay the same."""


def held_out_of(count: int) -> int:
    """How many of a set's first pairs are held out."""
    return min(HELD_OUT_PAIRS, count // 10)


@dataclass
class PairBatch:
    """Pairs on the training device, float32: `noise` and `image` (n, C, H, W), `states` (n, times, C, H, W)."""

    noise: Tensor
    image: Tensor
    states: Tensor | None
    labels: Tensor | None

    @property
    def trajectory(self) -> Tensor:
        """The teacher's states from noise to image (n, times + 2, C, H, W)."""
        return torch.cat([self.noise[:, None], self.states, self.image[:, None]], dim=1)

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, rows: slice) -> "PairBatch":
        return PairBatch(
            *(None if values is None else values[rows] for values in (self.noise, self.image, self.states, self.labels))
        )


class PairSet:
    """The pairs in a folder's shards, memory-mapped: a batch reads the pairs that it needs and no others.

    `state_times`: batches hold the teacher's states at these times; by default they hold none, and read none.
    `count`: the first so many pairs make the set, by default all.

    Raises UserError for a folder with too few pairs, with pairs that do not belong together, or without those states.
    """

    def __init__(self, folder: Path, device: torch.device, state_times: Sequence[float] = (), count: int | None = None):
        self.folder, self.device = folder, device
        paths = shard_paths(folder)
        if not paths:
            raise UserError(f"there are no noise pairs in {folder}: make them with generate_noise_dataset.py")
        self.shards = [read_shard(path) for path in paths]
        self.header = recipe_of(self.shards[0]["header"])
        self.count = 0
        for index, (path, shard) in enumerate(zip(paths, self.shards, strict=True)):
            if recipe_of(shard["header"]) != self.header:
                raise UserError(f"{path} was made otherwise than {paths[0].name}: do not mix two sets in one folder")
            if path != shard_path(folder, index) or self.count != index * SHARD_SIZE:
                raise UserError(f"{folder} lacks pairs before {path.name}: make them with generate_noise_dataset.py")
            self.count += shard["header"]["count"]
        if count is not None:
            if count > self.count:
                raise UserError(f"{folder} holds only {self.count:,} pairs, not {count:,}")
            self.count = count
        self.state_columns = self._columns_of(state_times)
        self.held_out_count = held_out_of(self.count)
        if not self.held_out_count:
            raise UserError(f"{self.count} pairs of {folder} are too few: a tenth is held out, so make 10 or more")

    def __len__(self) -> int:
        return self.count

    @property
    def training_count(self) -> int:
        return len(self) - self.held_out_count

    @property
    def settings(self) -> SamplingSettings:
        """How the teacher was run."""
        return SamplingSettings(**self.header["sampling"])

    @property
    def description(self) -> dict:
        """What the header of a model trained on these pairs records of them."""
        headers = [shard["header"] for shard in self.shards]
        used = [max(0, min(header["count"], self.count - header["start"])) for header in headers]
        flop = sum(header["flop"] * number // header["count"] for header, number in zip(headers, used, strict=True))
        return {"pairs": self.header, "num_pairs": self.count, "pair_generation_flop": flop}

    def require_teacher(self, teacher: Checkpoint) -> None:
        if self.header["teacher"] != teacher.sha256:
            raise UserError(
                f"the pairs in {self.folder} are of another teacher: of {self.header['teacher'][:12]}..., "
                f"but {teacher.path} is {teacher.sha256[:12]}..."
            )

    def are_those_of(self, student: dict) -> bool:
        """Whether a student, by its header, learned from these pairs: the same noise, and the same images of it.

        Their number may differ, the states on the way that are kept, and the arithmetic, which only rounds otherwise.
        """
        apart = {"precision": None, "trajectory_times": None}
        if not student.get("pairs"):
            return False
        theirs, ours = ({**recipe, **apart} for recipe in (recipe_of(student["pairs"]), self.header))
        return canonical_json(theirs) == canonical_json(ours)

    def require_student(self, student: Checkpoint) -> None:
        """Raises UserError for a student whose pairs were made by another recipe."""
        if not self.are_those_of(student.header):
            raise UserError(f"{student.path} did not learn from pairs like those in {self.folder}")

    def require_held_out_unseen(self, header: dict, path: Path) -> None:
        """`header`: that of the checkpoint at `path`.

        Raises UserError if the model, or one that it was initialised from, may have trained on pairs that are now held
        out, or on others of the same noise and classes, whose images are much alike.
        """
        for run in lineage(header):
            count, theirs = run.get("num_pairs"), run.get("pairs", {})
            alike = all(theirs.get(name) == self.header[name] for name in ("seed", "image_shape", "class_names"))
            if alike and held_out_of(count) < self.held_out_count:
                raise UserError(
                    f"{path} learned from {count:,} pairs, and perhaps from some that are held out of these "
                    f"{len(self):,}: give --num-pairs {count}, or pairs of another --seed"
                )

    def require_shape(self, image_shape: tuple[int, ...]) -> None:
        if tuple(self.header["image_shape"]) != tuple(image_shape):
            raise UserError(
                f"the pairs in {self.folder} have shape {tuple(self.header['image_shape'])}, "
                f"the network makes images of shape {tuple(image_shape)}"
            )

    def _columns_of(self, state_times: Sequence[float]) -> list[int]:
        """Where the states at these times stand in the shards. Raises UserError where they do not hold all of them."""
        held = self.header["trajectory_times"]
        columns = [grid_index(time, held) for time in state_times]
        if None in columns:
            raise UserError(
                f"the pairs in {self.folder} hold states at t = {in_words(held) or '(none)'}, and those at "
                f"{in_words(state_times)} are needed: make pairs with these --trajectory-times, and with a number of "
                "steps that passes through them"
            )
        return columns

    def training_batch(self, indices: Tensor, flips: Tensor) -> PairBatch:
        """Pairs by their index (n,) among those for training; where `flips` (n,) is true, the pair is mirrored."""
        batch = self.gather(indices + self.held_out_count)
        batch.noise, batch.image = flip(batch.noise, flips), flip(batch.image, flips)
        batch.states = None if batch.states is None else flip(batch.states, flips)
        return batch

    def held_out(self) -> PairBatch:
        """The held-out pairs."""
        return self.gather(torch.arange(self.held_out_count))

    def gather(self, indices: Tensor) -> PairBatch:
        """Pairs by their index (n,) in the whole set."""
        shard_indices = indices // SHARD_SIZE
        order = shard_indices.argsort()
        present, counts = shard_indices[order].unique_consecutive(return_counts=True)
        places = order.split(counts.tolist())  # for each shard that is needed, where its pairs stand in the batch
        parts = [(self.shards[shard], place) for shard, place in zip(present.tolist(), places, strict=True)]

        def gather_tensor(name: str) -> Tensor | None:
            if name not in self.shards[0] or (name == "states" and not self.state_columns):
                return None
            pieces = []
            for shard, place in parts:
                chosen = indices[place] % SHARD_SIZE
                wanted = (chosen[:, None], self.state_columns) if name == "states" else chosen
                pieces.append(shard[name][wanted])
            rows = torch.cat(pieces)[order.argsort()].to(self.device)
            return rows.float() if rows.is_floating_point() else rows

        return PairBatch(*(gather_tensor(name) for name in ("noise", "image", "states", "labels")))
