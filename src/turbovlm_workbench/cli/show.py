"""``turbovlm show``: who is merged with whom, in pictures and in texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, Device, Dtype, Weights

OUT = Path("turbovlm-show.png")


def show_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files.", metavar="IMAGE...")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead, a text for the text encoder of MODEL; may be given again.",
            metavar="TEXT",
        ),
    ] = None,
    r: Annotated[
        str | None,
        typer.Option(
            "--r",
            help="Tokens removed in every block (default: 8 of a picture, 1 of a text).",
            metavar="INT...",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="turbo, redundancy, semantics, random.", metavar="NAME...")
    ] = "turbo redundancy",
    keep: Annotated[
        str | None,
        typer.Option(
            help="Instead, which visual tokens a language model gets: 0.25, or 64 an image."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The picture: .png or .webp; .gif is animated (default: {OUT}).", metavar="FILE"
        ),
    ] = None,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = "fp32",
    json: Annotated[
        Path | None,
        typer.Option(help="Write them as JSON, for turbovlm report.", metavar="FILE"),
    ] = None,
) -> None:
    """Draw who is merged with whom, block by block: each token in the mean colour of its patches.

    Beside them the attention of the unmerged model's guide, which Turbo spares. Examples:

      turbovlm show timm:vit_base_patch16_224 dog.jpg --out dog.png

      turbovlm show timm:vit_base_patch16_224 dog.jpg cat.jpg --r 13 --out both.gif

      turbovlm show sentence-transformers/all-MiniLM-L6-v2 --text "a dog runs over the grass" --r 1
    """
    from turbovlm.config import VisualTokens
    from turbovlm.errors import ConfigError
    from turbovlm_workbench.analyze.maps import kept_maps, picture_maps
    from turbovlm_workbench.analyze.words import word_map
    from turbovlm_workbench.cli.arguments import names, read_keep, whole_numbers
    from turbovlm_workbench.cli.output import (
        check_writable,
        deliver,
        print_parts,
        progress_bar,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import command_line
    from turbovlm_workbench.compare.titles import title_of
    from turbovlm_workbench.compare.variants import merge_settings
    from turbovlm_workbench.data.images import read_image
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.load.words import load_text_encoder
    from turbovlm_workbench.report import maps as report
    from turbovlm_workbench.report.words import NOTES, word_lines
    from turbovlm_workbench.tasks.registry import load_task

    if bool(images) == bool(text):
        raise ConfigError("show takes image files, or --text for a text encoder: give one of them")
    asked = whole_numbers(r or ("1" if text else "8"), "--r")
    merges = merge_settings(asked, names(method, "--method"))
    settings = {title_of((merge,)): merge for merge in merges}
    place = pick_device(device)
    number_format = pick_dtype(dtype, place)
    if text:
        given = {"--keep": keep, "--out": out, "--weights": weights}
        if extra := [flag for flag, value in given.items() if value is not None]:
            raise ConfigError(f"{' and '.join(extra)} is for pictures: leave it out with --text")
        check_writable(json, "--json")
        with progress_bar():
            encoder = load_text_encoder(model)
            encoder.model.to(device=place, dtype=number_format)
            texts = [word_map(encoder, words, settings).to_dict() for words in text]
        told = {"kind": "show", "command": command_line(), "model": model, "texts": texts}
        lines = [line for one in texts for line in word_lines(one)]
        deliver(lambda: write_json(told, json), lambda: print_parts("\n".join(lines), *NOTES))
        return
    config = None if keep is None else VisualTokens(keep=read_keep(keep))
    out = out or OUT
    kind = out.suffix.lower()
    if kind not in report.MAPS:
        raise ConfigError(f"--out {out} must end in {', '.join(report.MAPS)}")
    check_writable(out, "--out")
    check_writable(json, "--json")
    pictures = {path.name: read_image(path) for path in images or ()}
    with progress_bar() as progress:
        task = load_task(model, weights)
        task.model.to(device=place, dtype=number_format)
        progress("maps", 0, 1)
        if config is None:
            found = picture_maps(task, pictures, settings)
            drawn, strips = report.map_file(found, kind), [report.map_strip(f) for f in found]
        else:
            found = kept_maps(task, pictures, config)
            drawn, strips = report.kept_file(found, kind), [report.kept_strip(f) for f in found]

    def data() -> dict[str, Any]:
        shown = [
            {"name": one.name, "words": dict(one.words), "strip": report.picture_uri(strip)}
            for one, strip in zip(found, strips, strict=True)
        ]
        return {"kind": "show", "command": command_line(), "model": model, "pictures": shown}

    def tell() -> None:
        lines = []
        for one in found:
            lines += [one.name, *(f"  {side}: {text}" for side, text in one.words.items())]
        print_parts("\n".join(lines), f"picture: {out}")

    deliver(lambda: write_json(data(), json), lambda: write_file(out, drawn), tell)
