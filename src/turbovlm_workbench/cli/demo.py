"""``turbovlm demo``: the built-in captioner, or painter, on images and captions of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import JsonFile

PAGE, PAINTED = Path("turbovlm-demo.html"), Path("turbovlm-demo-generate.html")
ASKED = Path("turbovlm-demo-vlm.html")
ROUNDS, SECONDS, BATCH = 8, 30.0, 32


def demo_command(
    generate: Annotated[
        bool, typer.Option("--generate", help="Draw pictures from captions instead.")
    ] = False,
    vlm: Annotated[
        bool, typer.Option("--vlm", help="Ask about pictures with fewer visual tokens instead.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help=f"The page to write (default: {PAGE}, {PAINTED} or {ASKED}).", metavar="FILE"
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Show on the built-in captioner what merging gains and costs on this machine.

    With --generate on the built-in painter, with --vlm on the built-in vision-language model. No
    download, under two minutes on two cores. Example:

      turbovlm demo --html demo.html

      turbovlm demo --generate

      turbovlm demo --vlm
    """
    if generate and vlm:
        raise typer.BadParameter("--generate and --vlm are two demonstrations: give one of them")
    from turbovlm.errors import require
    from turbovlm_workbench.cli.output import check_outputs
    from turbovlm_workbench.load.lab import require_lab

    require_lab()
    require("matplotlib", "report")
    require("jinja2", "report")
    html = html or (PAINTED if generate else ASKED if vlm else PAGE)
    check_outputs({"--html": html, "--json": json})
    (_paint if generate else _ask if vlm else _caption)(html, json)


def _caption(html: Path, json: Path | None) -> None:
    from turbovlm_workbench.cli.output import (
        deliver,
        print_parts,
        progress_bar,
        show,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import command_line, with_command
    from turbovlm_workbench.compare.bench import run_bench
    from turbovlm_workbench.compare.plan import BenchPlan
    from turbovlm_workbench.compare.samples import show_some
    from turbovlm_workbench.compare.variants import merge_settings
    from turbovlm_workbench.demo.captioner import METHODS, RS, SCENES, UnseenScenes, captioning
    from turbovlm_workbench.load.device import pick_device
    from turbovlm_workbench.settings import combined

    variants = combined(merge_settings(RS, METHODS), ())
    plan = BenchPlan(BATCH, pick_device(None), fused=True, rounds=ROUNDS, seconds=SECONDS)
    with progress_bar() as progress:
        scenes = UnseenScenes.unseen(SCENES)
        task = captioning(scenes)
        report = run_bench(task, scenes, variants, plan, progress)
        samples, setting = show_some(task, scenes, report)
    lines = []
    for sample in samples:
        lines += [sample.name, f"  {'unmerged':<{len(setting)}}  {sample.unmerged}"]
        lines.append(f"  {setting:<8}  {'the same' if sample.same else sample.merged}")

    def tell() -> None:
        print_parts("\n".join([*lines, ""]))
        show(report)

    def page() -> None:
        from turbovlm_workbench.report.page import bench_page

        title = "turbovlm: a small captioner, faster"
        write_file(html, bench_page(report, samples, setting, title, command_line()))
        print_parts(f"page: {html}")

    deliver(lambda: write_json(with_command(report.to_dict()), json), tell, page)


def _paint(html: Path, json: Path | None) -> None:
    from turbovlm_workbench.cli.output import (
        deliver,
        print_parts,
        progress_bar,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import with_command
    from turbovlm_workbench.demo.painter import painter_demo as painting
    from turbovlm_workbench.report.generation import (
        picture_notes,
        picture_page,
        picture_table,
        picture_verdict,
    )

    with progress_bar() as progress:
        shown = painting(progress)
    drawn = shown.comparison
    right = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shown.right.items())
    data = {**drawn.to_dict(), "said": shown.said, "right": shown.right}

    def page() -> None:
        title = "turbovlm: a small painter, faster"
        write_file(html, picture_page(drawn, title, shown.said, shown.right))
        print_parts(f"page: {html}")

    deliver(
        lambda: write_json(with_command(data), json),
        lambda: print_parts(
            "\n".join(drawn.prompts),
            picture_table(drawn),
            "\n".join(picture_notes(drawn)),
            f"drawn right, as the built-in captioner reads the pictures: {right}",
            picture_verdict(drawn),
        ),
        page,
    )


def _ask(html: Path, json: Path | None) -> None:
    from turbovlm_workbench.cli.output import (
        deliver,
        print_parts,
        progress_bar,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import with_command
    from turbovlm_workbench.demo.vlm import vlm_demo
    from turbovlm_workbench.report.vlm import vlm_notes, vlm_page, vlm_table

    with progress_bar() as progress:
        shown = vlm_demo(progress)

    def page() -> None:
        write_file(html, vlm_page(shown, "turbovlm: a small vision-language model, fewer tokens"))
        print_parts(f"page: {html}")

    deliver(
        lambda: write_json(with_command(shown.to_dict()), json),
        lambda: print_parts(vlm_table(shown), "\n".join(vlm_notes(shown))),
        page,
    )
