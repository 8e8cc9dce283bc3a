"""``turbovlm search``: the nearest pictures among those that ``turbovlm run embed`` embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import Device, Weights


def search_command(
    folder: Annotated[Path, typer.Argument(help="The --out of turbovlm run embed.", metavar="DIR")],
    text: Annotated[
        str | None, typer.Option(help="What the pictures shall show.", metavar="TEXT")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="What they shall look like.", metavar="FILE")
    ] = None,
    top: Annotated[int, typer.Option(help="Most pictures to name.")] = 10,
    weights: Weights = None,
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find pictures by a text or a picture; the first search writes the index.

    Examples:

      turbovlm search embeddings --text "a red circle at the left"

      turbovlm search embeddings --image photo.jpg --top 3 --json
    """
    from rich.table import Table

    from turbovlm.errors import ConfigError, require

    for package in ("faiss", "pyarrow"):
        require(package, "scale")
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.cli.terminal import visible
    from turbovlm_workbench.data.images import read_image
    from turbovlm_workbench.scale.search import (
        build_index,
        embed_picture,
        embed_text,
        load_query_model,
        nearest_pictures,
    )

    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    if (text is None) == (image is None):
        raise ConfigError("search asks with one of --text and --image: give one of them")
    picture = None if image is None else read_image(image)
    with progress_bar() as progress:
        work = load_query_model(folder, weights, device)
        query = embed_text(work, text or "") if picture is None else embed_picture(work, picture)
        build_index(folder, progress)
        found = nearest_pictures(folder, query, top)
    if json:
        print_json([{"id": one.id, "cosine": one.cosine} for one in found])
        return
    shown = Table("cosine", "picture", box=None)
    for one in found:
        shown.add_row(f"{one.cosine:.3f}", visible(one.id))
    print_parts(shown)
