"""Caption an unseen scene with and without merging; needs no download.

python examples/captioner.py
"""

from PIL import Image

import turbovlm
from turbovlm_lab import captioner
from turbovlm_lab.scenes import scene, seed_of_split

model, processor = captioner.load_captioner()
picture = scene(seed_of_split("test", 0))
pixels = processor.image_processor(Image.fromarray(picture.image), return_tensors="pt").pixel_values


def caption() -> str:
    tokens = model.generate(pixels, max_new_tokens=captioner.CAPTION_TOKENS)
    return processor.decode(tokens[0], skip_special_tokens=True)


print("truth    ", picture.caption)
print("unmerged ", caption())

with turbovlm.applied(model, turbovlm.Merge(r=8)) as run:
    print("r=8      ", caption())
print("tokens after each block", run.trace.tokens)

turbovlm.apply(model, turbovlm.Merge(r=16))
print("r=16     ", caption())
turbovlm.remove(model)
