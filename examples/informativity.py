"""How alike the tokens of each block are, and where its guide looks; needs no download.

python examples/informativity.py
"""

import torch
from PIL import Image

import turbovlm
from turbovlm_lab import captioner
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_workbench.analyze.encoder import analyze_encoder

model, processor = captioner.load_captioner()
pictures = [Image.fromarray(scene(seed_of_split("test", n)).image) for n in range(8)]
pixels = processor.image_processor(pictures, return_tensors="pt").pixel_values

found = analyze_encoder(
    model.vision_model, model.vision_model, pixels.split(4), {"r=14": turbovlm.Merge(r=14)}
)
print("block  redundancy  top quarter  tokens at r=14  merge error")
for plain, merged in zip(*found.sides.values(), strict=True):
    print(
        f"{plain.block:5}  {plain.redundancy:10.3f}  {plain.concentration:11.1%}"
        f"  {merged.tokens:14.0f}  {merged.merge_error:11.3f}"
    )


# the same from the ground up: a function sees every block while it runs
def note(record) -> None:
    if record.block == 0:
        print("the first block sees", tuple(record.tokens.shape))


turbovlm.apply(model, turbovlm.Merge(r=14))
with torch.no_grad(), turbovlm.recording(model, observe=note):
    model.vision_model(pixels[:1])
turbovlm.remove(model)
