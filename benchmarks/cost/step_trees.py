"""The shapes of parameters on which a step is timed."""

Shapes = dict[str, tuple[int, ...]]


def leaves(number: int, size: int) -> Shapes:
    return {f"{i}/kernel": (size,) for i in range(number)}


def vision_transformer(depth: int, width: int) -> Shapes:
    """12 layers of width 768 are ViT-B's 86 M parameters."""
    square, wide, vector = (width, width), (width, 4 * width), (width,)
    layer = {
        **{f"{name}/kernel": square for name in ("query", "key", "value", "out")},
        **{f"{name}/bias": vector for name in ("query", "key", "value", "out", "down")},
        "up/kernel": wide,
        "up/bias": (4 * width,),
        "down/kernel": wide[::-1],
        **{f"norm_{i}/{name}": vector for i in range(2) for name in ("scale", "bias")},
    }
    layers = {f"{i}/{name}": shape for i in range(depth) for name, shape in layer.items()}
    return {"embed/kernel": (768, width), "place/embedding": (197, width), **layers}


def scanned_decoder(depth: int, width: int) -> Shapes:
    """A gated decoder block whose layers are stacked for `lax.scan`."""
    hidden = 8 * width // 3 // 64 * 64
    layer = {
        **{f"{name}/kernel": (width, width) for name in ("query", "key", "value", "out")},
        **{f"{name}/kernel": (width, hidden) for name in ("gate", "up")},
        "down/kernel": (hidden, width),
        **{f"norm_{i}/scale": (width,) for i in range(2)},
    }
    return {name: (depth, *shape) for name, shape in layer.items()}


TREES = {
    "one leaf of 32 M": leaves(1, 2**25),
    "ViT-B, 86 M": vision_transformer(12, 768),
    "1,000 leaves of 1,000": leaves(1000, 1000),
    "scanned decoder, 103 M": scanned_decoder(8, 1024),
}
QUICK_TREES = {"a small ViT": vision_transformer(2, 64), "10 leaves": leaves(10, 1000)}


def trees(quick: bool) -> dict[str, Shapes]:
    return QUICK_TREES if quick else TREES
