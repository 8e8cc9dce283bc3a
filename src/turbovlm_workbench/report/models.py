"""The supported models, from the rows: for the terminal, for scripts, and for docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from turbovlm.plug.denoiser.row import Denoiser
from turbovlm.plug.encoder.row import Refusal, Row
from turbovlm.plug.language.row import LanguageRefusal, LanguageRow

DENOISER_HEADERS = ("denoiser", "merged and restored", "left alone", "example")
LANGUAGE_HEADERS = (
    "model",
    "tower merging (Merge)",
    "fewer LLM tokens (VisualTokens)",
    "both in one call",
    "example",
)
HEADERS = ("library", "encoder", "tokens", "prefix", "guide", "short for", "example")

ANY_DECODER = "VisionEncoderDecoderModel"  # named once, in the introduction

INTRODUCTION = """\
# Supported models

Generated from the rows by `turbovlm models --markdown`; a test compares the two.

Every row is tested on a small model with random weights: r = 0 is bit-identical to the host, r > 0
equals a slow literal reference under every score and differs from the host, and removal, one
compiled graph, copies, gradient checkpointing, half precision and exact duplicates are covered.
What contains such an encoder is supported with it: LLaVA through CLIP, PaliGemma through
SigLIP, BLIP for NLVR2 (`turbovlm_workbench.paper.nlvr`) and MiniGPT-v2
(`turbovlm_workbench.paper.minigptv2`) through BLIP's and BLIP-2's. `turbovlm check MODEL`
says it for a model by name.

- **prefix**: tokens (cls, distillation, registers) that are never merged.
- **guide**: whose attention is the semantic value: the cls token's, or the mean query's.
- **short for**: which models get the short sequence, because they read the cls token alone or
  attend over the tokens, however many there are; for rows of transformers a
  VisionEncoderDecoderModel too. Everything else that reads the encoder, or one of its layers, gets
  a value for every position.
- Text encoders are merged only when they are given to `apply` themselves: a caption is short and
  needs a smaller r. Padding has size 0 and is merged away first.
- **Packed towers** (Qwen2-VL to Qwen3.5, GLM-4V, Pixtral) lay the patches of all images in one
  sequence. r, ratio and speedup count for each image, or frame of a video; pairs stay inside the
  image, and inside the window in blocks that attend within windows; the attention must be
  `attn_implementation="sdpa"`. `torch.compile` leaves these towers to eager torch, and
  `Merge.paper` is refused in them. The rest is tested as in every row.
"""

LANGUAGE = """
## Language models that read images

`turbovlm.Merge` works inside the vision tower, which gives every position back to what projects
it; `turbovlm.VisualTokens` hands fewer tokens to the language model, where the time goes
([how](choosing.md#language-models-that-read-images)). Every model was run at small size with random
weights, with each of the two and with both; none with published weights, which were not at hand.
"""

DENOISERS = """
## Diffusion

Denoisers of diffusers, alone or in any pipeline, for `turbovlm.MergeRestore`
([how](generation.md)). Each is tested on a small model with random weights: ratio 0 and removal are
bit-identical to the host, one compiled graph (Flux: block by block), copies, files, threads, half
precision. The blocks of UNets equal a slow literal reference. No published weights were at hand.
"""

REFUSED = """
## Known and refused

These raise `UnsuitableBlock` with the reason, and the model stays as it was.
"""


@dataclass(frozen=True)
class Supported:
    """Everything that the tables know.

    Attributes:
        rows: encoders.
        languages: language models that read images.
        denoisers: of diffusion models.
        refusals: encoders that are known and cannot be patched.
        language_refusals: language models that cannot be given fewer tokens.
    """

    rows: Sequence[Row]
    languages: Sequence[LanguageRow]
    denoisers: Sequence[Denoiser]
    refusals: Sequence[Refusal]
    language_refusals: Sequence[LanguageRefusal]

    @property
    def language_cells(self) -> list[tuple[str, ...]]:
        """The table of language models, refused ones last."""
        accepted = [_language(row) for row in self.languages]
        return accepted + [
            self._refused(refusal, name)
            for refusal in self.language_refusals
            for name in refusal.names
            if name.endswith("Model")
        ]

    def _refused(self, refusal: LanguageRefusal, name: str) -> tuple[str, ...]:
        row = next(row for row in self.rows if name in row.readers)
        return _short(name), _short(row.towers[0]), f"no: {refusal.reason}", "no", row.example


def to_dict(known: Supported) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "supported": [
            dict(zip(HEADERS, _cells(r), strict=True)) | {"block": r.block} for r in known.rows
        ],
        "language_models": [
            dict(zip(LANGUAGE_HEADERS, cells, strict=True)) for cells in known.language_cells
        ],
        "denoisers": [
            dict(zip(DENOISER_HEADERS, _denoiser(d), strict=True)) | {"block": d.block}
            for d in known.denoisers
        ],
        "refused": [{"reason": r.reason, "names": list(r.names)} for r in known.refusals],
    }


def tables(known: Supported) -> tuple[Table, Table, Table, Table]:
    """Encoders, language models, denoisers, and what is refused with the reason."""
    refused = [(", ".join(map(_short, r.names)), r.reason) for r in known.refusals]
    return (
        _table(HEADERS, [_cells(row) for row in known.rows]),
        _table(LANGUAGE_HEADERS, known.language_cells),
        _table(DENOISER_HEADERS, [_denoiser(row) for row in known.denoisers]),
        _table(("refused", "reason"), refused),
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headers, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(known: Supported) -> str:
    """The page docs/models.md."""
    refused = [(", ".join(f"`{n}`" for n in r.names), r.reason) for r in known.refusals]
    lines = [
        INTRODUCTION,
        *_lines(HEADERS, [_quoted(_cells(row)) for row in known.rows]),
        LANGUAGE,
        *_lines(LANGUAGE_HEADERS, [_quoted(cells) for cells in known.language_cells]),
        DENOISERS,
        *_lines(DENOISER_HEADERS, [_quoted(_denoiser(row)) for row in known.denoisers]),
        REFUSED,
        *_lines(("classes", "reason"), refused),
    ]
    return "\n".join(lines) + "\n"


def _lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(headers), _line(["---"] * len(headers)), *map(_line, rows)]


def _quoted(cells: Sequence[str]) -> list[str]:
    """With the example as code."""
    return [*cells[:-1], f"`{cells[-1]}`"]


def _language(row: LanguageRow) -> tuple[str, ...]:
    takes = " and ".join(f"{modality}s" for modality in row.tokens)
    return _short(row.outer), ", ".join(row.towers), takes, "yes", row.example


def _cells(row: Row) -> list[str]:
    prefix = row.prefix if isinstance(row.prefix, tuple) else (row.prefix,)
    return [
        row.block.split(".")[0],
        f"{_short(row.towers[0])} ({_short(row.block)})",
        row.modality,
        " + ".join(str(part).rsplit(".", 1)[-1] for part in prefix),
        "cls, else mean" if row.cls else row.guide,
        _kept(row),
        row.example,
    ]


def _kept(row: Row) -> str:
    """Which models get the short sequence; all others get every position."""
    own = {"cls": "its own forward", "tokens": "its own forward"}.get(row.reads)
    names = [_short(n) for n, reads in row.readers.items() if reads in ("cls", "tokens")]
    readers = [name for name in names if name != ANY_DECODER]
    if row.pool:
        own = "its own forward, pooling by cls"
    return ", ".join(filter(None, (own, *readers))) or "none"


def _denoiser(row: Denoiser) -> list[str]:
    parts = (*row.attention, *row.feed_forward)
    return [
        f"{', '.join(map(_short, row.roots))} ({_short(row.block)})",
        "the whole block" if row.whole else ", ".join(parts),
        row.left,
        row.example,
    ]


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
