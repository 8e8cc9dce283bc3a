"""``turbovlm demo``: the bench on the built-in captioner and its own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PAGE = Path("turbovlm-demo.html")
ROUNDS, SECONDS, BATCH = 8, 30.0, 32


def demo(
    html: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")] = PAGE,
    json: Annotated[
        Path | None, typer.Option(help="Write the results as JSON.", metavar="FILE")
    ] = None,
) -> None:
    """Show on the built-in captioner what merging gains and costs on this machine.

    No download, under two minutes on two cores. Example:

      turbovlm demo --html demo.html
    """
    from turbovlm.cli.output import check_writable, progress_bar, show, write_json
    from turbovlm.errors import require
    from turbovlm.tasks import bench as benching
    from turbovlm.tasks.demo import METHODS, RS, SCENES, Scenes, captioning
    from turbovlm.tasks.device import pick_device
    from turbovlm.tasks.samples import show_some
    from turbovlm.tasks.variants import settings

    require("matplotlib", "report")
    require("jinja2", "report")
    check_writable(html, "--html")
    check_writable(json, "--json")
    plan = benching.Plan(BATCH, pick_device(None), fused=True, rounds=ROUNDS, seconds=SECONDS)
    with progress_bar() as progress:
        scenes = Scenes.unseen(SCENES)
        task = captioning(scenes)
        report = benching.run(task, scenes, settings(RS, METHODS), plan, progress)
        samples, setting = show_some(task, scenes, report)
    write_json(report, json)
    for sample in samples:
        print(f"{sample.name}\n  {'unmerged':<{len(setting)}}  {sample.unmerged}")
        print(f"  {setting:<8}  {'the same' if sample.same else sample.merged}")
    print()
    show(report)

    from turbovlm.report.page import page

    title = "turbovlm: a small captioner, faster"
    html.write_text(page(report, samples, setting, title), encoding="utf-8")
    print(f"page: {html}")
