"""What is known and cannot be patched, with the reason that a user gets to read."""

from turbovlm.plug.row import Refusal

_PARALLEL = (
    "its attention and MLP branches read the same tokens in parallel, so there is no place between "
    "them to merge; use a model with sequential blocks"
)
_WINDOWS = (
    "it attends within windows of a fixed grid, and merging takes tokens out of the grid; use a "
    "plain vision transformer"
)
_CAUSAL = (
    "it is causal and is read at the end-of-text position, so a merge would leak later tokens into "
    "earlier ones; patch the vision tower"
)
_LAST = "it is read at its last position, which a merge would move; patch the vision tower"
_TIMM = "timm.models"
_HF = "transformers.models"

REFUSALS = (
    Refusal(f"{_TIMM}.vision_transformer.ParallelScalingBlock", _PARALLEL),
    Refusal(f"{_TIMM}.vision_transformer.DiffParallelScalingBlock", _PARALLEL),
    Refusal(
        f"{_TIMM}.vision_transformer.ParallelThingsBlock",
        "it sums several attention branches, each with keys of its own; use a model with one "
        "attention per block",
    ),
    Refusal(f"{_TIMM}.swin_transformer.SwinTransformer", _WINDOWS),
    Refusal(f"{_TIMM}.swin_transformer_v2.SwinTransformerV2", _WINDOWS),
    Refusal(f"{_TIMM}.davit.DaVit", _WINDOWS),
    Refusal(f"{_HF}.swin.modeling_swin.SwinModel", _WINDOWS),
    Refusal(f"{_HF}.swinv2.modeling_swinv2.Swinv2Model", _WINDOWS),
    Refusal(f"{_HF}.donut.modeling_donut_swin.DonutSwinModel", _WINDOWS),
    Refusal(f"{_HF}.florence2.modeling_florence2.Florence2VisionBackbone", _WINDOWS),
    Refusal(
        f"{_TIMM}.beit.Beit",
        "it adds a bias per pair of grid positions to the attention, which does not follow merged "
        "tokens; use a model with position embeddings",
    ),
    Refusal(f"{_HF}.clip.modeling_clip.CLIPTextModel", _CAUSAL),
    Refusal(f"{_HF}.blip.modeling_blip_text.BlipTextLMHeadModel", _CAUSAL),
    Refusal("open_clip.transformer.TextTransformer", _CAUSAL),
    Refusal(f"{_HF}.siglip.modeling_siglip.SiglipTextModel", _LAST),
    Refusal(f"{_HF}.siglip2.modeling_siglip2.Siglip2TextModel", _LAST),
)
