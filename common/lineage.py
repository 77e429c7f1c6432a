"""How a model came to be: the training runs behind its weights, one after the other, by their headers."""

LOSSES = ("loss", "feature_weight", "critic", "critic_images", "critic_weight", "no_flips")
"""The arguments that say by what a student was trained, the last of them on which pairs."""


def lineage(header: dict) -> list[dict]:
    """A model's header and, before it, those of the weights that it started from (`--init`, `--student`)."""
    headers = [header]
    while "initial" in headers[0]:
        headers.insert(0, headers[0]["initial"])
    return headers


def student_training_runs(header: dict) -> list[dict]:
    """By which losses a student was trained, run after run, their networks, and the FLOP; of a teacher nothing."""
    return [
        {name: run["arguments"].get(name) for name in LOSSES}
        | {"flop": run["training_flop"] - run.get("initial_flop", 0), "num_networks": len(feature_networks(run))}
        for run in lineage(header)
        if run["stage"] != "teacher"
    ]


def losses_in_words(run: dict) -> str:
    """What one training run of a student added up."""
    pixels = "pseudo-huber" if run["loss"] == "features" else run["loss"]
    features = f" + {run['feature_weight']:g} features" if run["loss"] == "features" else ""
    critic = f" + {run['critic_weight']:g} {run['critic']} ({run['critic_images']} images)" if run["critic"] else ""
    networks = f" by {run['num_networks']} networks" if run.get("num_networks", 1) > 1 else ""
    flips = ", no mirrored pairs" if run.get("no_flips") else ""
    return pixels + features + critic + networks + flips


def feature_networks(header: dict) -> dict[str, int]:
    """The networks in a student's losses in its last run, by their content: what the training of each took."""
    if "feature_network" in header:  # as headers said it when there could be only one
        return {header["feature_network"]: header["feature_network_flop"]}
    return header.get("feature_networks", {})


def feature_networks_flop(header: dict) -> int:
    """What the training of the networks in a student's losses took, each counted once."""
    networks = {}
    for run in lineage(header):
        networks |= feature_networks(run)
    return sum(networks.values())
