"""How a model came to be: the training runs behind its weights, one after the other, by their headers."""

LOSSES = ("loss", "feature_weight", "critic", "critic_images", "critic_weight")
"""The arguments that say by what a student was trained."""


def lineage(header: dict) -> list[dict]:
    """A model's header and, before it, those of the weights that it started from (`--init`, `--student`)."""
    headers = [header]
    while "initial" in headers[0]:
        headers.insert(0, headers[0]["initial"])
    return headers


def student_training_runs(header: dict) -> list[dict]:
    """By which losses a student was trained, run after run, and the FLOP of each; of a teacher nothing."""
    return [
        {name: run["arguments"].get(name) for name in LOSSES}
        | {"flop": run["training_flop"] - run.get("initial_flop", 0)}
        for run in lineage(header)
        if run["stage"] != "teacher"
    ]


def losses_in_words(run: dict) -> str:
    """What one training run of a student added up."""
    pixels = "pseudo-huber" if run["loss"] == "features" else run["loss"]
    features = f" + {run['feature_weight']:g} features" if run["loss"] == "features" else ""
    critic = f" + {run['critic_weight']:g} {run['critic']} ({run['critic_images']} images)" if run["critic"] else ""
    return pixels + features + critic


def feature_networks_flop(header: dict) -> int:
    """What the training of the networks in a student's losses took, each counted once."""
    networks = {
        run["feature_network"]: run["feature_network_flop"] for run in lineage(header) if "feature_network" in run
    }
    return sum(networks.values())
