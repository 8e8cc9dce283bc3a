"""``turbovlm generate``: the same prompts and noise, drawn without and with merging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import Device, Dtype, names, numbers

OUT = Path("turbovlm-generate.png")
PIPELINE_HELP = "A folder of a diffusers pipeline, a hub id, or lab:painter, the built-in one."
Steps = Annotated[int | None, typer.Option(help="Denoising steps (default: the pipeline's).")]
Guidance = Annotated[
    float | None, typer.Option(help="Scale of guidance (default: the pipeline's).")
]
Size = Annotated[
    int | None, typer.Option(help="Side of the picture (default: the model's).", metavar="PX")
]
Negative = Annotated[str | None, typer.Option(help="What not to draw.", metavar="TEXT")]


def generate_command(
    model: Annotated[str, typer.Argument(help=PIPELINE_HELP, metavar="MODEL")],
    prompt: Annotated[
        list[str], typer.Option(help="What to draw; may be given several times.", metavar="TEXT")
    ],
    ratio: Annotated[
        str, typer.Option(help="Share of the tokens to merge, from 0.", metavar="FLOAT...")
    ] = "0.3",
    method: Annotated[
        str, typer.Option(help="turbo, redundancy, semantics, random.", metavar="NAME...")
    ] = "turbo",
    min_tokens: Annotated[
        int,
        typer.Option(
            help="Leave modules with fewer visual tokens alone: small levels of a small model cost "
            "more to match than they save.",
            metavar="N",
        ),
    ] = 0,
    image: Annotated[
        Path | None,
        typer.Option(help="Begin with this picture: image to image.", metavar="FILE"),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of --image may change, up to 1.")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    negative: Negative = None,
    seed: Annotated[int, typer.Option(help="Of the first picture's noise.")] = 0,
    rounds: Annotated[int, typer.Option(help="Timed pictures of every side at least.")] = 3,
    out: Annotated[Path, typer.Option(help="The grid of pictures.", metavar="FILE.png")] = OUT,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    device: Device = None,
    dtype: Dtype = "fp32",
) -> None:
    """Draw pictures without and with merging, side by side, and time both.

    Examples:

      turbovlm generate lab:painter --prompt "a large red circle at the top left" --ratio 0.3 0.5
      --min-tokens 1024

      turbovlm generate ./stable-diffusion --prompt "a watercolour" --image photo.jpg --strength 0.6
    """
    from turbovlm.errors import ConfigError, require
    from turbovlm_workbench.cli.output import (
        check_writable,
        deliver,
        print_json,
        print_parts,
        progress_bar,
        write_file,
    )
    from turbovlm_workbench.cli.terminal import with_command
    from turbovlm_workbench.data.images import read_image
    from turbovlm_workbench.generation.compare import (
        PicturePlan,
        compare_pictures,
        restore_settings,
    )
    from turbovlm_workbench.generation.draw import Drawing
    from turbovlm_workbench.generation.pipeline import check_pipeline, load_pipeline
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report.generation import (
        grid,
        picture_notes,
        picture_table,
        picture_verdict,
    )

    # Whatever can be wrong is found here, before the model is loaded.
    merges = restore_settings(numbers(ratio, "--ratio"), names(method, "--method"), min_tokens)
    start = None if image is None else read_image(image)
    drawing = Drawing(steps, guidance, size, negative, start, strength).of(model)
    plan = PicturePlan(prompt, drawing, seed, rounds)
    place = pick_device(device)
    number_format = pick_dtype(dtype, place)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out} must end in .png")
    check_writable(out, "--out")
    require("matplotlib", "report")
    check_pipeline(model)
    with progress_bar() as progress:
        pipe = load_pipeline(model, number_format, place, image=image is not None)
        drawn = compare_pictures(pipe, model, plan, merges, progress)

    def tell() -> None:
        if json:
            print_json(with_command({**drawn.to_dict(), "out": str(out)}))
            return
        notes = "\n".join(picture_notes(drawn))
        print_parts(picture_table(drawn), notes, picture_verdict(drawn), f"pictures: {out}")

    deliver(lambda: write_file(out, grid(drawn)), tell)
