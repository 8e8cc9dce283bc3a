"""The commands as a person runs them: whole command lines, exit codes, stdout and stderr."""

from __future__ import annotations

import html
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import turbovlm
from tests.workbench import build
from turbovlm_workbench.cli import main

TIMM = f"timm:{build.TINY}"


def turbovlm_runs(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    code = leaving.value.code
    assert isinstance(code, int)
    return code, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, labels, a timm checkpoint and two transformers models."""
    folder = tmp_path_factory.mktemp("place")
    build.photos(folder / "photos", 3)
    rows = ["photo0.jpg,1", "photo2.jpg,2", "sub/photo1.jpg,3"]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    build.timm_weights(folder / "tiny.safetensors")
    build.vit_classifier(folder / "vit")
    build.blip(folder / "blip")
    return folder


def test_bench_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(
        capsys, "bench", TIMM, "--weights", place / "tiny.safetensors", "--images",
        place / "photos", "--labels", place / "labels.csv", "--r", 2, 8, "--method", "turbo",
        "random", "--batch", 2, "--rounds", 2, "--json", place / "out.json", "--html",
        place / "out.html",
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == [
        "setting", "tokens", "GFLOPs", "ideal", "images/s", "speed-up", "peak", "MiB",
        "accuracy", "agreement", "KL",
    ]  # fmt: skip
    tokens = {line[:12].strip(): line[12:].split()[0] for line in lines[1:] if " r=" in line[:12]}
    assert tokens == {"turbo r=2": "89", "turbo r=8": "53", "random r=2": "89", "random r=8": "53"}
    assert lines[-2].startswith(("Use ", "No "))
    assert lines[-1] == f"page: {place / 'out.html'}"
    assert "Traceback" not in err
    data = json.loads((place / "out.json").read_text())
    assert [row["name"] for row in data["rows"]] == ["unmerged", *tokens]
    assert data["rows"][2]["tokens"] == 53
    assert data["advice"] == lines[-2]
    assert data["images"] == 3
    assert data["command"].startswith(f"turbovlm bench {TIMM} --weights")
    page = (place / "out.html").read_text()
    assert f'<pre class="command">{data["command"]}</pre>' in page
    assert page.count("<img src=") == 6


def test_bench_of_a_captioner_with_fused_attention(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = turbovlm_runs(
        capsys, "bench", place / "blip", "--images", place / "photos", "--fused", "--r", 8,
        "--beams", 1, "--batch", 2, "--rounds", 2,
    )  # fmt: skip
    assert code == 0, err
    starts = [line.split("  ")[0] for line in out.splitlines()[1:5] if line.strip()]
    assert starts == ["unmerged", "unmerged, fused attention", "turbo r=8"]
    assert "against unmerged, fused attention (the same fused attention on both sides)" in out
    assert "same caption" in out


def bench(place: Path, *more: object, model: object = TIMM, images: str = "photos") -> list[object]:
    """A command line that is right but for what ``more`` adds."""
    weights = ["--weights", place / "tiny.safetensors"] if model == TIMM else []
    return ["bench", model, "--images", place / images, *weights, *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--r", "-4"], "r must not be negative, got -4"),
        (["--r", "4", "2.5"], "--r takes integers, not '2.5'"),
        (["--r", "4", "eight"], "--r takes integers, not 'eight'"),
        (["--r", "4", "8", "timm:x"], "not 'timm:x': --r 4 8 12 (the model is named before it)"),
        (["--r", ","], "--r needs at least one value"),
        (["--r"], "--r"),
        (["--method", "turbo", "best"], "method must be one of turbo, redundancy"),
        (["--method", ","], "--method needs at least one value"),
        (["--alpha", "nan"], "alpha must be finite"),
        (["--alpha", "inf"], "alpha must be finite"),
        (["--alpha", "much"], "--alpha"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--device", "cpu", "--graph"], "CUDA graphs need a CUDA device, and this run is on cpu"),
        (["--graph", "--compile"], "--compile and --graph are two ways to run it"),
        (["--keep", "0"], "keep must be at least one token an image, got 0"),
        (["--speedup", "0.5"], "speedup must be at least 1, got 0.5"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--beams", "0"], "--beams must be at least 1"),
        (["--device", "gpu"], "no device 'gpu' here: use --device cpu"),
        (["--device", "cuda:99"], "no device 'cuda:99' here"),
        (["--dtype", "int4"], "--dtype must be one of fp32, bf16, fp16"),
        (["--labels", "gone.csv"], "no label table gone.csv"),
        (["--json", "/no/such/folder/x.json"], "cannot write --json /no/such/folder/x.json"),
        (["--html", "/"], "cannot write --html /"),
        (["--fused"], "--fused is for models"),
        (["--unknown"], "No such option"),
        (["second"], "second"),
    ],
)
def test_mistakes_on_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    code, out, err = turbovlm_runs(capsys, *bench(place, *more))
    assert (code, out) == (2, "")
    error = err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("timm:vit_tiny_patch61_224", "timm has no model 'vit_tiny_patch61_224': did you mean"),
        ("timm:test_convnext", "no row describes ConvNeXt"),
        ("timm:test_vit_relpos", "no row describes VisionTransformerRelPos"),
        ("empty", "is the folder complete"),
        ("bert", "is a BertModel (bert), which bench cannot run"),
    ],
)
def test_models_that_cannot_be_used(
    place: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    import timm
    import transformers
    from safetensors.torch import save_file

    more: list[object] = ["--r", 4]
    if model.startswith("timm:test"):
        path = place / f"{model.removeprefix('timm:')}.safetensors"
        save_file(timm.create_model(model.removeprefix("timm:")).state_dict(), path)
        more += ["--weights", path]
    elif not model.startswith("timm:"):
        (place / model).mkdir(exist_ok=True)
        if model == "bert":
            transformers.BertConfig(architectures=["BertModel"]).save_pretrained(place / model)
        model = str(place / model)
    code, out, err = turbovlm_runs(capsys, *bench(place, *more, model=model))
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert message in err


def test_weights_with_wrong_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.zeros(1)}, place / "other.pth")
    code, _, err = turbovlm_runs(
        capsys, "bench", TIMM, "--images", place / "photos", "--weights", place / "other.pth"
    )
    assert code == 2
    assert "other.pth does not fit timm:test_vit" in err
    assert "1 are unknown (a, ...)" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "does not exist"), ("bare", "holds no image"), ("broken", "cannot read image")],
)
def test_folders_that_cannot_be_used(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    if name != "none":
        (place / name).mkdir(exist_ok=True)
    if name == "broken":
        Image.new("RGB", (64, 64)).save(place / name / "good.png")
        (place / name / "bad.png").write_bytes((place / name / "good.png").read_bytes()[:40])
    code, out, err = turbovlm_runs(capsys, *bench(place, images=name))
    assert (code, out) == (2, "")
    assert message in err
    assert name in err


def test_a_wrong_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "wrong.csv").write_text("path,species\nphoto0.jpg,cat\n", encoding="utf-8")
    code, _, err = turbovlm_runs(capsys, *bench(place, "--labels", place / "wrong.csv"))
    assert code == 2
    assert "has the columns path, species, but none of image, file, filename, name" in err


def test_labels_for_a_captioner(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["--labels", place / "labels.csv"]
    code, _, err = turbovlm_runs(capsys, *bench(place, *labels, model=place / "blip"))
    assert code == 2
    assert "--labels is for classifiers" in err


def test_a_path_is_checked_before_the_run_and_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "old.json").write_text("old")
    for name in ("old.json", "new.json"):
        argv = bench(place, "--json", place / name, "--images", place / "gone")
        assert turbovlm_runs(capsys, *argv)[0] == 2
    assert (place / "old.json").read_text() == "old"
    assert not (place / "new.json").exists()


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("bench timm", "timm", "timm"),
        ("bench hf", "transformers", "hf"),
        ("bench html", "matplotlib", "report"),
        ("demo", "transformers", "hf"),
        ("demo", "jinja2", "report"),
    ],
)
def test_a_missing_extra(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    package: str,
    extra: str,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    argv = {
        "bench timm": bench(place),
        "bench hf": bench(place, model=place / "vit"),
        "bench html": bench(place, "--html", place / "x.html"),
        "demo": ["demo", "--html", place / "x.html"],
    }[command]
    code, out, err = turbovlm_runs(capsys, *argv)
    assert (code, out) == (2, "")
    assert f"needs {package}, which is not installed: pip install 'turbovlm[{extra}]'" in err
    assert not (place / "x.html").exists()


def test_bf16_where_the_device_cannot(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turbovlm_workbench.load.device._computes", lambda dtype, device: False)
    code, _, err = turbovlm_runs(capsys, *bench(place, "--dtype", "bf16", "--device", "cpu"))
    assert code == 2
    assert "cpu does not compute in bf16: use --dtype fp32" in err


def test_an_interrupt(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("turbovlm_workbench.data.images.ImageFolder.open", interrupt)
    code, _, err = turbovlm_runs(capsys, *bench(place))
    assert (code, err) == (130, "interrupted\n")


def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("turbovlm_workbench.demo.captioner.SCENES", 8)
    monkeypatch.setattr("turbovlm_workbench.demo.captioner.RS", (8,))
    monkeypatch.setattr("turbovlm_workbench.demo.captioner.METHODS", ("turbo", "random"))
    monkeypatch.setattr("turbovlm_workbench.cli.demo.ROUNDS", 2)
    code, out, err = turbovlm_runs(capsys, "demo", "--json", "demo.json")
    assert code == 0, err
    assert out.startswith("scene 1\n  unmerged")
    assert "a large blue cross at the top left" in out  # the first object of the first test scene
    data = json.loads(Path("demo.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == ["unmerged", "unmerged, fused attention", "turbo r=8", "random r=8"]
    assert rows["unmerged"]["quality"]["attributes"] >= 0.9
    assert rows["turbo r=8"]["tokens"] == 197 - 8 * 8
    assert rows["random r=8"]["quality"]["exact"] < rows["turbo r=8"]["quality"]["exact"]
    page = Path("turbovlm-demo.html").read_text()
    assert page.count("<img src=") == 12
    assert data["advice"] in html.unescape(page)


def test_help_names_every_option_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = turbovlm_runs(capsys, "bench", "--help")
    assert code == 0
    for word in ("MODEL", "--images", "--labels", "--r", "--method", "--weights", "--json",
                 "--batch", "--device", "--dtype", "--compile", "--graph", "--fused", "--html",
                 "--speedup", "--keep",
                 "--collapse"):  # fmt: skip
        assert word in out
    assert "turbovlm bench timm:vit_base_patch16_224 --images photos --r 8 12 16" in out
    code, out, _ = turbovlm_runs(capsys, "demo", "-h")
    assert code == 0
    assert "turbovlm demo --html" in out
    assert turbovlm_runs(capsys, "--version")[:2] == (0, f"turbovlm {turbovlm.__version__}\n")
    code, out, err = turbovlm_runs(capsys)
    assert code == 2
    assert "demo" in out + err


def test_help_loads_nothing_heavy_and_little_else() -> None:
    script = (
        "import sys\n"
        "from turbovlm_workbench.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as leaving:\n    assert leaving.code == 0\n"
        "heavy = {'torch', 'transformers', 'timm', 'matplotlib', 'numpy', 'jinja2', 'PIL', 'ray'}\n"
        "print('LOADED', sorted(heavy & sys.modules.keys()), len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("LOADED ")[2].split()
    assert loaded[0] == "[]"
    # 396 modules in 0.4 s; a count, as a time depends on what else the machine does
    assert int(loaded[1]) < 450


def test_an_error_leaves_one_line_and_code_2_to_the_shell(tmp_path: Path) -> None:
    script = "from turbovlm_workbench.cli import main; main()"
    argv = [sys.executable, "-c", script, "bench", "timm:x", "--images", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tmp_path} holds no image: expected files ending in .png, .jpg, .jpeg, .webp, .bmp"
    ]
