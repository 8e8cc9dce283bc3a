"""Ask MiniGPT-v2 about two images, with and without merging; needs no download.

The sizes are small and the weights random, so the answers mean nothing: load a converted
checkpoint instead (python -m turbovlm_workbench.paper.minigptv2_checkpoint --help).

python examples/minigptv2.py
"""

import torch
from PIL import Image
from transformers import LlamaTokenizer

import turbovlm
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_workbench.paper.minigptv2 import MiniGPTv2Config, MiniGPTv2ForConditionalGeneration
from turbovlm_workbench.paper.minigptv2_prompt import SHORT_ANSWER, prepare, prompt

letters = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "▁"]
tokenizer = LlamaTokenizer(vocab={letter: index for index, letter in enumerate(letters)})

torch.manual_seed(0)
sizes = {"num_attention_heads": 4, "num_hidden_layers": 3, "initializer_range": 0.2}
config = MiniGPTv2Config(
    vision_config={**sizes, "hidden_size": 64, "intermediate_size": 256, "image_size": 224},
    text_config={
        **sizes, "hidden_size": 64, "intermediate_size": 256, "vocab_size": len(letters),
    },
)  # fmt: skip
model = MiniGPTv2ForConditionalGeneration(config).eval()

images = [Image.fromarray(scene(seed_of_split("test", index)).image) for index in range(2)]
prompts = [
    prompt(SHORT_ANSWER.format("What colour is the largest object?"), "vqa"),
    prompt("the small circle", "refer"),
]
inputs = prepare(tokenizer, images, prompts, size=config.vision_config.image_size)


def answers() -> list[str]:
    tokens = model.generate(**inputs, max_new_tokens=12)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


print(prompts[0])
print("unmerged ", *answers(), sep="  ")

with turbovlm.applied(model, turbovlm.Merge(r=12)) as run:
    print("r=12     ", *answers(), sep="  ")
print("tokens after each block", run.trace.tokens)

try:
    turbovlm.apply(model, turbovlm.Merge(r=13))
except turbovlm.TurboError as error:
    print("r=13      refused:", error)
