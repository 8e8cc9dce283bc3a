"""Ask a question about an unseen scene with and without merging; needs no download.

python examples/question.py
"""

from PIL import Image

import turbovlm
from turbovlm_lab.questions import ask
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_workbench.load.by_task import load_answering

loaded = load_answering("lab:vqa")
picture = scene(seed_of_split("test", 0))
pixels = loaded.pixels([Image.fromarray(picture.image)])
questions = ask(picture.objects, seed=0)

print("scene    ", picture.caption)
for one in questions:
    before = loaded.answer(pixels, [one.text])[0]
    with turbovlm.applied(loaded.model, turbovlm.Merge(r=8)) as run:
        after = loaded.answer(pixels, [one.text])[0]
    print(f"{one.text}  truth {one.answer}, unmerged {before}, r=8 {after}")
