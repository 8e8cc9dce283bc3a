"""Draw the merge map of the README: a generated scene, and what is left of its patches.

python docs/scripts/merge_map.py docs/images/merge-map.png
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

import turbovlm
from turbovlm_lab.captioner import load_captioner
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_workbench.report.mergemap import merge_map

SCENE = 7
"""Number of the scene in the test split, which the captioner was not trained on."""
REMOVED = (8, 20)
"""r of the maps, one beside another."""
SIDE, GAP, COLOURS = 320, 16, 96


def draw_maps() -> Image.Image:
    """The scene and one map for each r, side by side."""
    model, processor = load_captioner()
    picture = scene(seed_of_split("test", SCENE)).image
    pixels = processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    panels = [picture]
    for r in REMOVED:
        with turbovlm.applied(model, turbovlm.Merge(r=r)) as run:
            model.vision_model(pixels)
        owner = run.trace.representative()[0, run.trace.prefix_tokens :]
        side = round(len(owner) ** 0.5)
        panels.append(merge_map(picture, owner.reshape(side, side).numpy()))
        print(f"r = {r}: {run.trace.start} -> {run.trace.tokens[-1]} tokens")
    width = len(panels) * (SIDE + GAP) - GAP
    whole = Image.new("RGB", (width, SIDE), "white")
    for place, panel in enumerate(panels):
        small = Image.fromarray(np.asarray(panel)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        whole.paste(small, (place * (SIDE + GAP), 0))
    return whole.quantize(COLOURS)


if __name__ == "__main__":
    draw_maps().save(sys.argv[1], optimize=True)
