"""The paper's FLOPs as closed formulas: a second opinion that shares no code with the counter.

fvcore's convention: one multiply-add is 1; linear, convolution and matrix products count;
LayerNorm counts 5 per element; the rest is free. Merging in every block after the attention: cls
is protected, at most half of the other tokens go, and the product of the two sets counts at the
width of one head. Nothing else of a merge counts. All results in units of 10^9.
"""

from __future__ import annotations

GIGA = 1e9


def layer_norm(tokens: int, width: int) -> int:
    return 5 * tokens * width


def attention(queries: int, keys: int, width: int) -> int:
    """The two products of all heads together, without the projections."""
    return 2 * queries * keys * width


def encoder(
    size: int, patch: int, width: int, depth: int, mlp: int, head: int, r: int
) -> tuple[int, int]:
    """A ViT with a cls token for one image: its operations and the tokens that it leaves."""
    tokens = (size // patch) ** 2 + 1
    total = (tokens - 1) * 3 * patch**2 * width
    for _ in range(depth):
        total += 2 * layer_norm(tokens, width) - layer_norm(min(r, (tokens - 1) // 2), width)
        total += 4 * tokens * width**2 + attention(tokens, tokens, width)
        merged = min(r, (tokens - 1) // 2)
        if merged:
            sources, destinations = (tokens + 1) // 2 - 1, tokens // 2
            total += sources * destinations * head
            tokens -= merged
        total += 2 * tokens * width * mlp
    return total + layer_norm(tokens, width), tokens


SIZES = {  # patch, width, depth, MLP, head width
    "S": (16, 384, 12, 1536, 64),
    "B": (16, 768, 12, 3072, 64),
    "L": (16, 1024, 24, 4096, 64),
    "H": (14, 1280, 32, 5120, 80),
    "g": (14, 1408, 39, 6144, 88),
}


def vit(kind: str, size: int, r: int) -> tuple[int, int]:
    return encoder(size, *SIZES[kind], r)


def tower(kind: str, size: int, r: int, classes: int = 0) -> float:
    total, _ = vit(kind, size, r)
    return (total + classes * SIZES[kind][1]) / GIGA


def nlvr(r: int, text: int = 36, width: int = 768, mlp: int = 3072, depth: int = 12) -> float:
    """Two images; every text layer attends to each, and the second half joins by a layer."""
    image, tokens = vit("B", 384, r)
    total = 2 * image + layer_norm(text, width)
    for layer in range(depth):
        total += 4 * text * width**2 + attention(text, text, width) + layer_norm(text, width)
        for _ in range(2):
            total += 2 * text * width**2 + 2 * tokens * width**2  # query, output; key, value
            total += attention(text, tokens, width)
        total += (layer >= depth // 2) * text * 2 * width**2 + layer_norm(text, width)
        total += 2 * text * width * mlp + layer_norm(text, width)
    return (total + width**2 + 2 * width) / GIGA


def blip_caption(r: int, steps: int, beams: int = 3, prompt: int = 4) -> float:
    """Keys and values of the image anew in each step; logits of every position that is fed."""
    width, depth, mlp, vocabulary = 768, 12, 3072, 30524
    total, image = vit("B", 384, r)
    for step in range(steps):
        fed = 1 if step else prompt
        layer = 4 * fed * width**2 + attention(fed, prompt + step, width)
        layer += 2 * fed * width**2 + 2 * image * width**2 + attention(fed, image, width)
        layer += 2 * fed * width * mlp + 3 * layer_norm(fed, width)
        head = fed * width**2 + layer_norm(fed, width) + fed * width * vocabulary
        total += beams * (layer_norm(fed, width) + depth * layer + head)
    return total / GIGA


def q_former(image: int, queries: int = 32, width: int = 768) -> int:
    """12 layers, of which every other one attends to the image."""
    total = layer_norm(queries, width)
    for layer in range(12):
        total += 4 * queries * width**2 + attention(queries, queries, width)
        if layer % 2 == 0:
            total += 2 * queries * width**2 + 2 * image * 1408 * width
            total += attention(queries, image, width) + layer_norm(queries, width)
        total += 2 * queries * width * 3072 + 2 * layer_norm(queries, width)
    return total


def blip2_caption(r: int, steps: int, beams: int = 5, prompt: int = 32 + 4) -> float:
    """OPT-2.7B: the first step is fed queries and prompt, all beams alike."""
    width, depth, mlp, vocabulary = 2560, 32, 10240, 50272
    total, image = vit("g", 364, r)
    total += q_former(image) + 32 * 768 * width
    for step in range(steps):
        fed = 1 if step else prompt
        layer = 4 * fed * width**2 + attention(fed, prompt + step, width)
        layer += 2 * fed * width * mlp + 2 * layer_norm(fed, width)
        total += beams * (depth * layer + layer_norm(fed, width) + fed * width * vocabulary)
    return total / GIGA


def stable_diffusion(ratio: float = 0.0) -> float:
    """Stable Diffusion 1.5's UNet at 512 px, its LayerNorms counted as everywhere else.

    Merged, every module of a block is spared ``ratio`` of the tokens. One product for each block
    compares three tokens of every 2 x 2 cell with one of every cell, at the width of a token; the
    mean token becomes a query, which is taken through the keys' weights to the tokens of 8 heads.
    """
    time = 1280

    def convolution(inside: int, outside: int, side: int) -> int:
        return 9 * inside * outside * side**2

    def residual(inside: int, outside: int, side: int) -> int:
        total = convolution(inside, outside, side) + convolution(outside, outside, side)
        shortcut = inside * outside * side**2 if inside != outside else 0
        return total + time * outside + shortcut

    def transformer(width: int, side: int) -> int:
        tokens = side**2
        left = tokens - int(ratio * tokens)
        total = 2 * tokens * width**2  # in and out
        total += 4 * left * width**2 + attention(left, left, width)
        total += 2 * left * width**2 + 2 * 77 * 768 * width + attention(left, 77, width)
        total += left * width * 8 * width + left * 4 * width * width  # gated, hence 8
        matching = (3 * tokens // 4) * (tokens // 4) * width + 2 * width**2 + tokens * width * 8
        return total + (ratio > 0) * matching + 3 * layer_norm(tokens, width)

    levels = ((320, 64, True), (640, 32, True), (1280, 16, True), (1280, 8, False))
    total = 320 * time + time**2 + convolution(4, 320, 64) + convolution(320, 4, 64)
    width, skips = 320, [320]
    for level, (channels, side, attends) in enumerate(levels):
        for _ in range(2):
            total += residual(width, channels, side) + attends * transformer(channels, side)
            width = channels
            skips.append(width)
        if level < 3:
            total += convolution(width, width, side // 2)
            skips.append(width)
    total += 2 * residual(1280, 1280, 8) + transformer(1280, 8)
    for level, (channels, side, attends) in reversed(list(enumerate(levels))):
        for _ in range(3):
            total += residual(width + skips.pop(), channels, side)
            total += attends * transformer(channels, side)
            width = channels
        if level:
            total += convolution(width, width, 2 * side)
    return total / GIGA
