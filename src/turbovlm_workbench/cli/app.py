"""The application: its commands, and how an error leaves the program."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

import turbovlm
from turbovlm.errors import TurboError
from turbovlm_workbench.cli.ablate import ablate_command
from turbovlm_workbench.cli.analyze import analyze_command
from turbovlm_workbench.cli.arguments import join_command, join_values
from turbovlm_workbench.cli.bench import bench_command
from turbovlm_workbench.cli.check import check_command
from turbovlm_workbench.cli.demo import demo_command
from turbovlm_workbench.cli.eval import eval_command
from turbovlm_workbench.cli.eval_generation import eval_generation_command
from turbovlm_workbench.cli.flops import flops_command
from turbovlm_workbench.cli.generate import generate_command
from turbovlm_workbench.cli.models import models_command
from turbovlm_workbench.cli.report import report_command
from turbovlm_workbench.cli.run import run_job_command
from turbovlm_workbench.cli.search import search_command
from turbovlm_workbench.cli.show import show_command
from turbovlm_workbench.cli.sweep import sweep_command
from turbovlm_workbench.cli.terminal import remember_command, tolerant_streams, visible
from turbovlm_workbench.cli.tune import tune_command
from turbovlm_workbench.extensions import load_packages

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo_command)
app.command("bench")(bench_command)
app.command("generate")(generate_command)
app.command("eval")(eval_command)
app.command("eval generation")(eval_generation_command)
app.command("run")(run_job_command)
app.command("search")(search_command)
app.command("sweep")(sweep_command)
app.command("tune")(tune_command)
app.command("analyze")(analyze_command)
app.command("ablate")(ablate_command)
app.command("show")(show_command)
app.command("report")(report_command)
app.command("flops")(flops_command)
app.command("check")(check_command)
app.command("models")(models_command)

# 70 is EX_SOFTWARE of sysexits.h; 141 is what a shell says of a program that SIGPIPE ended.
INTERRUPTED, UNEXPECTED, NO_READER = 130, 70, 141
# Read by libraries when they load, which is after the command line has been read.
ENVIRONMENT = {
    # Our progress bar stands for theirs, and theirs would draw over it.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    # OpenMP's threads wait for each other in a busy loop, of about a millisecond by default. Where
    # another program holds one of the cores, that wait made the demo ten times slower.
    "GOMP_SPINCOUNT": "20000",
}
# typer does not export the base of its usage errors, and has changed its module.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"turbovlm {turbovlm.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make vision-language models faster without retraining, by merging tokens.

    [bold]turbovlm demo[/]  shows it on a built-in model, without a download.

    [bold]turbovlm bench[/]  measures it on your model and your images.

    [bold]turbovlm generate[/]  draws pictures with and without merging, side by side.

    [bold]turbovlm eval[/]  scores it on the data of a task: predictions, metrics, intervals.

    [bold]turbovlm run[/]  embeds, captions or answers over millions of pictures, on Ray Data.

    [bold]turbovlm search[/]  finds pictures among the embedded ones, by text or picture.

    [bold]turbovlm sweep[/]  measures all combinations of settings and marks the best ones.

    [bold]turbovlm tune[/]  finds the fastest setting whose loss stays within a promise.

    [bold]turbovlm analyze[/]  says how redundant the tokens of every block are.

    [bold]turbovlm ablate[/]  runs the paper's ablations on your model and data.

    [bold]turbovlm show[/]  draws who is merged with whom in a picture.

    [bold]turbovlm report[/]  makes one page of what the others measured.

    [bold]turbovlm check[/]  says whether a model is supported and what would be merged.

    [bold]turbovlm models[/]  lists what is supported.

    [bold]turbovlm flops[/]  counts it from a model's name alone, and counts the paper's rows.
    """
    load_packages()


def run_command(argv: Sequence[str]) -> int:
    """Run one command line; the exit code is returned and errors are one line on stderr.

    An unexpected error shows its traceback and has a code of its own.
    """
    tolerant_streams()
    remember_command(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        code = app(join_values(join_command(argv)), prog_name="turbovlm", standalone_mode=False)
        sys.stdout.flush()
    except TurboError as error:
        return _fail(str(error))
    except UsageError as error:
        message = getattr(error, "format_message", error.__str__)()
        return _fail(f"{message} (turbovlm --help)" if message else "")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        return _no_reader()
    except SystemExit as leaving:  # rich ends the program where the help has no reader
        if isinstance(leaving.__context__, BrokenPipeError):
            return _no_reader()
        raise
    except Exception as error:
        traceback.print_exc()
        print(
            f"error: unexpected {type(error).__name__}, a mistake in turbovlm or in a library: "
            "please report it with the lines above",
            file=sys.stderr,
        )
        code = UNEXPECTED
    if code == INTERRUPTED:  # some versions of typer turn the interrupt into this code themselves
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    if message:  # no arguments at all: typer has shown the help already
        print("error:", visible(" ".join(message.split())), file=sys.stderr)
    return 2


def _no_reader() -> int:
    """Stdout was closed (``turbovlm bench ... | head``): leave without a word."""
    with suppress(OSError, ValueError):
        # Python would try to write the rest when it ends, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER
