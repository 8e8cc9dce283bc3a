"""Classify pictures by sentences, with and without merging; needs no download.

python examples/classification.py

The class of a picture is the sentence that the model finds most similar. For photographs give a
model of the hub (CLIP, SigLIP, BLIP), the sentences between semicolons, and the files:

python examples/classification.py openai/clip-vit-base-patch32 "a photo of a dog;a photo of a cat" *.jpg
"""  # noqa: E501

import sys

import torch
from PIL import Image

import turbovlm
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_workbench.load.by_task import load_matching

if len(sys.argv) > 3:
    name, sentences, *files = sys.argv[1:]
    classes = sentences.split(";")
    pictures = [Image.open(file).convert("RGB") for file in files]
else:
    name = "lab:retrieval"
    scenes = [scene(seed_of_split("test", index)) for index in range(12)]
    classes = [one.caption for one in scenes]
    files = [f"scene {index}" for index in range(12)]
    pictures = [Image.fromarray(one.image) for one in scenes]

loaded = load_matching(name)
pixels = loaded.pixels(pictures)


def classified() -> list[int]:
    """The number of the class of each picture."""
    with torch.no_grad():
        return loaded.similarity(loaded.see(pixels), loaded.read(classes)).argmax(1).tolist()


before = classified()
for file, index in zip(files, before, strict=True):
    print(f"{file}: {classes[index]}")

for r in (8, 16):
    with turbovlm.applied(loaded.model, turbovlm.Merge(r=r)) as run:
        same = sum(a == b for a, b in zip(before, classified(), strict=True))
    print(f"r={r}: {same} of {len(files)} are the same, tokens {run.trace.tokens}")
