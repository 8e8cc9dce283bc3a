"""Judge statements about two images with BLIP for NLVR2; needs no download.

The weights are random, so the answers mean nothing: load a converted checkpoint instead
(python -m turbovlm_workbench.paper.nlvr_checkpoint --help).

python examples/nlvr.py
"""

import torch
from PIL import Image
from transformers import BertTokenizer, BlipImageProcessor

import turbovlm
from turbovlm_lab.grammar import caption_vocabulary
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *caption_vocabulary(), "[ENC]"]
tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
processor = BlipImageProcessor(size={"height": 224, "width": 224})

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6}
special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
config = NlvrConfig(
    vision_config={**sizes, "num_attention_heads": 2, "image_size": 224, "initializer_range": 0.2},
    text_config={
        **sizes,
        **special,
        "num_attention_heads": 2,
        "vocab_size": len(words),
        "initializer_range": 0.2,
    },
    enc_token_id=words.index("[ENC]"),
    initializer_range=0.2,
)
model = BlipForNlvr(config).eval()

left, right = (scene(seed_of_split("test", index)) for index in range(2))
statement = left.caption.split(",")[0]
pixels = processor([Image.fromarray(s.image) for s in (left, right)], return_tensors="pt")
text = tokenizer(statement, return_tensors="pt")


def answer() -> str:
    with torch.no_grad():
        logits = model(pixels.pixel_values[None], text.input_ids, text.attention_mask).logits
    true = logits.softmax(-1)[0, 1].item()
    return f"{'true' if true > 0.5 else 'false'}, with {true:.4f} for true"


print("statement ", statement)
print("unmerged  ", answer())
with turbovlm.applied(model, turbovlm.Merge(r=16)) as run:
    print("r=16      ", answer())
print("tokens after each block", run.trace.tokens)
