"""Rows for text encoders: BERT and its relatives, which normalise after the residual.

Padding becomes tokens of size 0. All positions are restored at the end: sentence encoders
average them, question encoders hand them on together with the mask.
"""

from typing import Any

from turbovlm.plug.encoder.row import Reads, Row


def _classifier(package: str, name: str) -> dict[str, Reads]:
    return {f"transformers.models.{package}.modeling_{package}.{name}": "cls"}


def _row(package: str, module: str, block: str, tower: str, **fields: Any) -> Row:
    path = f"transformers.models.{package}.modeling_{module}"
    return Row(
        f"{path}.{block}",
        (f"{path}.{tower}",),
        attention=("attention", "crossattention"),
        mlp=("output", "intermediate"),
        post_norm=True,
        modality="text",
        mask="attention_mask",
        padding=("attention_mask",),
        aside=("encoder_hidden_states", "encoder_attention_mask", "position_ids"),
        **fields,
    )


ROWS = (
    _row(
        "bert",
        "bert",
        "BertLayer",
        "BertModel",
        readers=_classifier("bert", "BertForSequenceClassification"),
        causal="config.is_decoder",
        example="sentence-transformers/all-MiniLM-L6-v2",
    ),
    _row(
        "roberta",
        "roberta",
        "RobertaLayer",
        "RobertaModel",
        readers=_classifier("roberta", "RobertaForSequenceClassification"),
        causal="config.is_decoder",
        example="FacebookAI/roberta-base",
    ),
    _row(
        "xlm_roberta",
        "xlm_roberta",
        "XLMRobertaLayer",
        "XLMRobertaModel",
        causal="config.is_decoder",
        example="FacebookAI/xlm-roberta-base",
    ),
    _row(
        "blip",
        "blip_text",
        "BlipTextLayer",
        "BlipTextModel",
        decodes="is_decoder",
        example="Salesforce/blip-itm-base-coco",
    ),
)
