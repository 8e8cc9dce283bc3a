"""Draw pictures with a diffusion model, with and without merging; needs no download.

python examples/generation.py           # prints what a captioner reads in the pictures
python examples/generation.py FOLDER    # and keeps them there
"""

import sys
from pathlib import Path
from typing import Any

import torch

import turbovlm
from turbovlm_lab import painter
from turbovlm_lab.captioner import CAPTION_TOKENS, load_captioner
from turbovlm_lab.scenes import scene

pipe: Any = painter.load_painter()  # a small Stable Diffusion
reader, processor = load_captioner()
prompts = [scene(seed).caption for seed in painter.subjects("test", 0, 1)]


def draw() -> list:
    """Every prompt from the same noise each time."""
    noise = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    return pipe(
        prompts,
        num_inference_steps=10,
        guidance_scale=painter.GUIDANCE,
        generator=noise,
        height=painter.PIXELS,
        width=painter.PIXELS,
    ).images


def read(pictures: list) -> list[str]:
    """What the built-in captioner sees in them."""
    pixels = processor.image_processor(pictures, return_tensors="pt").pixel_values
    tokens = reader.generate(pixels, max_new_tokens=CAPTION_TOKENS)
    return processor.batch_decode(tokens, skip_special_tokens=True)


drawn = {"unmerged": draw()}
# the painter's other levels are too small to gain anything
with turbovlm.applied(pipe, turbovlm.MergeRestore(ratio=0.3, min_tokens=1024)):
    drawn["ratio=0.3"] = draw()

print("prompt   ", *prompts, sep="  ")
for name, pictures in drawn.items():
    print(f"{name:9}", *read(pictures), sep="  ")
    for index, picture in enumerate(pictures):
        if len(sys.argv) > 1:
            Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
            picture.save(Path(sys.argv[1]) / f"{name}-{index}.png")
