"""What `student_search.py` compares: ways to distil, by name."""

from dataclasses import dataclass, field

from common.stages import STAGES

COMMON = {"--batch-size": 64, "--optimizer": "muon", "--learning-rate": 1e-3, "--weight-decay": 0.01, "--seed": 0}
DISTILLATION = COMMON | {"--loss": "l2"}
STARTING_OPTIONS = {
    "teacher": COMMON | {"--preset": "cpu", "--label-dropout": 0.15, "--snapshot-steps": True},
    "one_step": DISTILLATION,
    "four_step": DISTILLATION,
}
"""Given in full, so that a row means the same whatever becomes of presets and defaults."""
NO_LONGER_OPTIONS = {"four_step": {"--own-share": 0, "--own-gradient": "step", "--step-times": [0.25, 0.5, 0.75]}}
"""What a stage now always does, as the options that it once had: in a definition, so that earlier rows stay valid."""


@dataclass(frozen=True)
class Variant:
    """What differs from the starting options."""

    stage: str
    options: dict = field(default_factory=dict)
    begins_as: str = ""
    """The variant whose weights it starts from; without, the teacher."""
    flop_share: float = 1.0
    """Of the FLOP that were asked for; the rest is spent on what it begins as."""
    pairs_share: float = 1.0
    """The first so many of the pairs."""

    @property
    def script(self) -> str:
        return STAGES[self.stage].script

    @property
    def weights_name(self) -> str:
        return STAGES[self.stage].weights_file

    @property
    def all_options(self) -> dict:
        return STARTING_OPTIONS[self.stage] | self.options

    @property
    def definition(self) -> dict:
        """As JSON values: what makes two variants of one name the same."""
        return {
            "stage": self.stage,
            "options": self.all_options | NO_LONGER_OPTIONS.get(self.stage, {}),
            "begins_as": self.begins_as,
            "flop_share": self.flop_share,
            "pairs_share": self.pairs_share,
        }


NO_FLIPS = {"--no-flips": True}
FIRST_HALF = "four steps, the teacher's states, for half the FLOP"

STUDENTS = {
    "one step": Variant("one_step"),
    "one step, no flips": Variant("one_step", NO_FLIPS),
    "one step, a quarter of the pairs": Variant("one_step", pairs_share=0.25),
    "one step, a quarter of the pairs, no flips": Variant("one_step", NO_FLIPS, pairs_share=0.25),
    "one step, pseudo-Huber": Variant("one_step", {"--loss": "pseudo-huber"}),
    "reflow, for half the FLOP": Variant("teacher", {"--time-distribution": "u-shaped"}, flop_share=0.5),
    "one step, after reflow": Variant("one_step", begins_as="reflow, for half the FLOP", flop_share=0.5),
    FIRST_HALF: Variant("four_step", flop_share=0.5),
    "one step, after four": Variant("one_step", begins_as=FIRST_HALF, flop_share=0.5),
    "four steps, the teacher's states": Variant("four_step"),
    "four steps, the teacher's states, no flips": Variant("four_step", NO_FLIPS),
    "four steps, the teacher's states, pseudo-Huber": Variant("four_step", {"--loss": "pseudo-huber"}),
}
