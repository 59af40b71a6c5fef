"""The order in which a newcomer reads the examples."""

ORDER = (
    "quickstart",
    "nnx_classifier",
    "linen_train_state",
    "adamwr",
    "decay_rules",
    "bfloat16",
    "sharded",
    "whole_run",
    "watch_loops",
    "watch_weights",
    "watch_language_model",
    "hyperball",
    "landscape_nnx",
    "landscape_linen",
    "transformer_lm",
    "landscape_cluster",
)


def by_hand(filename):
    return ORDER.index(filename.removesuffix(".py"))
