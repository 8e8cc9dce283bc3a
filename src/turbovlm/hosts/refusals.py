"""What is known and cannot be patched, with the reason that a user gets to read."""

from turbovlm.plug.encoder.row import Refusal

_TIMM = "timm.models"
_HF = "transformers.models"

REFUSALS = (
    Refusal(
        "its attention and MLP branches read the same tokens in parallel, so there is no place "
        "between them to merge; use a model with sequential blocks",
        (
            f"{_TIMM}.vision_transformer.ParallelScalingBlock",
            f"{_TIMM}.vision_transformer.DiffParallelScalingBlock",
        ),
    ),
    Refusal(
        "it sums several attention branches, each with keys of its own; use a model with one "
        "attention per block",
        (f"{_TIMM}.vision_transformer.ParallelThingsBlock",),
    ),
    Refusal(
        "it attends within windows of a fixed grid, and merging takes tokens out of the grid; use "
        "a plain vision transformer",
        (
            f"{_TIMM}.swin_transformer.SwinTransformer",
            f"{_TIMM}.swin_transformer_v2.SwinTransformerV2",
            f"{_TIMM}.davit.DaVit",
            f"{_HF}.swin.modeling_swin.SwinModel",
            f"{_HF}.swin.modeling_swin.SwinBackbone",
            f"{_HF}.swinv2.modeling_swinv2.Swinv2Model",
            f"{_HF}.swinv2.modeling_swinv2.Swinv2Backbone",
            f"{_HF}.maskformer.modeling_maskformer_swin.MaskFormerSwinModel",
            f"{_HF}.maskformer.modeling_maskformer_swin.MaskFormerSwinBackbone",
            f"{_HF}.vitdet.modeling_vitdet.VitDetModel",
            f"{_HF}.vitdet.modeling_vitdet.VitDetBackbone",
            f"{_HF}.hiera.modeling_hiera.HieraModel",
            f"{_HF}.hiera.modeling_hiera.HieraBackbone",
            f"{_HF}.sam.modeling_sam.SamVisionEncoder",
            f"{_HF}.rf_detr.modeling_rf_detr.RfDetrDinov2Backbone",
            f"{_HF}.lw_detr.modeling_lw_detr.LwDetrViTBackbone",
            f"{_HF}.donut.modeling_donut_swin.DonutSwinModel",
            f"{_HF}.florence2.modeling_florence2.Florence2VisionBackbone",
        ),
    ),
    Refusal(
        "it adds a bias per pair of grid positions to the attention, which does not follow merged "
        "tokens; use a model with position embeddings",
        (
            f"{_TIMM}.beit.Beit",
            f"{_HF}.beit.modeling_beit.BeitModel",
            f"{_HF}.beit.modeling_beit.BeitBackbone",
            f"{_HF}.data2vec.modeling_data2vec_vision.Data2VecVisionModel",
        ),
    ),
    Refusal(
        "its attention takes one rotary table for the whole batch, while each picture keeps other "
        "positions; use a tower with position embeddings (CLIP) or a table a sample (DINOv3)",
        (f"{_HF}.mlcd.modeling_mlcd.MLCDVisionModel",),
    ),
    Refusal(
        "its words and patches are one sequence, so that words would be merged with patches, and "
        "heads read single words of it; use a model with an encoder for the picture alone",
        (f"{_HF}.vilt.modeling_vilt.ViltModel",),
    ),
    Refusal(
        "it is causal and is read at the end-of-text position, so a merge would leak later tokens "
        "into earlier ones; patch the vision tower",
        (f"{_HF}.clip.modeling_clip.CLIPTextModel",),
    ),
    Refusal(
        "it is causal, or read at one fixed position, and a merge respects neither; patch the "
        "vision tower",
        (
            "open_clip.transformer.TextTransformer",
            f"{_HF}.siglip.modeling_siglip.SiglipTextModel",
            f"{_HF}.siglip2.modeling_siglip2.Siglip2TextModel",
        ),
    ),
    Refusal(
        "it decodes word by word from a cache, where nothing can be merged; patch the encoder that "
        "it reads",
        (f"{_HF}.blip.modeling_blip_text.BlipTextLMHeadModel",),
    ),
)
