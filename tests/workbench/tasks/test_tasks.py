"""Every task end to end on small real models: predictions and metrics against a slow second way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import turbovlm
from tests.workbench import build
from tests.workbench.load import test_answering, test_matching
from tests.workbench.run.test_run import lines, plan
from turbovlm.config import Merge
from turbovlm.errors import ConfigError, InputError, ModelError
from turbovlm_workbench.load.by_task import load_answering, load_matching, load_statements
from turbovlm_workbench.metrics.captions import score_captions
from turbovlm_workbench.run.runner import run_task
from turbovlm_workbench.tasks.registry import build_task, load_task
from turbovlm_workbench.tasks.request import Request

IMAGES = 8
MERGE = Merge(r=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise images, and data about them in the usual layouts."""
    folder = tmp_path_factory.mktemp("place")
    build.noise(folder / "images", IMAGES)
    names = [f"noise{n}.png" for n in range(IMAGES)]
    captions = [
        [f"word{n} word{n + 1}", f"word{n + 2} word3 word{n}"][: 1 + n % 2] for n in range(8)
    ]
    rows = [{"image": n, "captions": c} for n, c in zip(names, captions, strict=True)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "labels.csv").write_text(
        "\n".join(["file,label", *(f"{name},{n % 7}" for n, name in enumerate(names))])
    )
    rows = [
        {"image": n, "question": f"word{i} word4", "answers": ["word1"] * 10}
        for i, n in enumerate(names)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "pairs").mkdir()
    rows = []
    for n in range(6):
        for side in (0, 1):
            with Image.open(folder / "images" / names[n + side]) as image:
                image.save(folder / "pairs" / f"dev-{n // 2}-{n % 2}-img{side}.png")
        for which in (0, 1):
            rows.append(
                {
                    "identifier": f"dev-{n // 2}-{n % 2}-{which}",
                    "sentence": f"word{which + n // 2} word5",
                    "label": str(which == 0),
                }
            )
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def evaluate(
    place: Path, out: Path, task: str, data: str, model: Path, merge: Merge | None, **options: Any
) -> dict[str, Any]:
    images = place / ("pairs" if task == "nlvr2" else "images")
    request = Request(str(model), place / data, images, **options)
    done = run_task(
        build_task(task, request), () if merge is None else (merge,), plan(out, batch=3)
    )
    assert done is not None
    return done


def photographs(place: Path) -> list[Image.Image]:
    return [Image.open(place / "images" / f"noise{n}.png").convert("RGB") for n in range(IMAGES)]


@torch.inference_mode()
@pytest.mark.parametrize("merge", [None, MERGE])
def test_classification(place: Path, tmp_path: Path, merge: Merge | None) -> None:
    folder = build.vit_classifier(tmp_path / "vit")
    done = evaluate(place, tmp_path / "out", "classification", "labels.csv", folder, merge)
    task = load_task(str(folder))
    if merge is not None:
        turbovlm.apply(task.model, merge)
    logits = torch.cat([task.outputs(task.model, task.pixels([p])) for p in photographs(place)])
    ranked = logits.argsort(-1, descending=True).tolist()
    found = [line["classes"] for line in lines(tmp_path / "out" / "predictions.jsonl")]
    assert found == [r[:5] for r in ranked]
    right = [n % 7 in r[:5] for n, r in enumerate(ranked)]
    assert done["metrics"]["top5"] == pytest.approx(sum(right) / 8)
    assert done["metrics"]["top1"] == sum(r[0] == n % 7 for n, r in enumerate(ranked)) / 8


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip", "blip", "blip2"])
def test_retrieval(place: Path, tmp_path: Path, kind: str) -> None:
    make = {"blip": test_matching.blip, "blip2": test_matching.blip2}
    folder = tmp_path / "model"
    make[kind](folder) if kind in make else test_matching.dual(folder, kind)
    (tmp_path / "out").mkdir()
    whole = evaluate(place, tmp_path / "out", "retrieval", "captions.jsonl", folder, MERGE, top=10)
    found = {p["id"]: p["ranked"] for p in lines(tmp_path / "out" / "predictions.jsonl")}
    # the slow way: every pair, one by one
    matcher = load_matching(str(folder))
    turbovlm.apply(matcher.model, MERGE)
    rows = [json.loads(line) for line in (place / "captions.jsonl").read_text().splitlines()]
    texts = [
        (n, f"noise{n}.png#{k}", c) for n, r in enumerate(rows) for k, c in enumerate(r["captions"])
    ]
    scores = torch.empty(IMAGES, len(texts))
    match = torch.zeros_like(scores)
    for i, photo in enumerate(photographs(place)):
        pixels = matcher.prepare([photo])
        for j, (_, _, text) in enumerate(texts):
            scores[i, j] = matcher.similarity(matcher.see(pixels), matcher.read([text]))
            if matcher.reranks:
                match[i, j] = matcher.match(matcher.features(pixels), [text])
    recall = []
    for i in range(IMAGES):
        kept = scores[i].topk(10).indices
        order = kept[(scores + match)[i, kept].argsort(descending=True)]
        assert found[f"image noise{i}.png"] == [texts[j][1] for j in order]
        recall.append(texts[order[0]][0] == i)
    for j, (_, name, _) in enumerate(texts):  # all eight images are candidates
        order = (scores + match)[:, j].argsort(descending=True).tolist()
        assert found[f"caption {name}"] == [f"noise{i}.png" for i in order]
    assert whole["metrics"]["i2t_r1"] == pytest.approx(sum(recall) / IMAGES)
    assert whole["metrics"]["t2i_r10"] == 1.0
    plain = evaluate(place, tmp_path / "plain", "retrieval", "captions.jsonl", folder, None)
    assert plain["metrics"].keys() == whole["metrics"].keys()
    before, after = (lines(tmp_path / o / "images.jsonl") for o in ("plain", "out"))
    assert before != after, "merging changed nothing"


@torch.inference_mode()
def test_captioning(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    folder = build.blip(tmp_path / "blip")
    task = load_task(str(folder), beams=1)
    turbovlm.apply(task.model, MERGE)
    wanted = [task.outputs(task.model, task.pixels([p]))[0] for p in photographs(place)]
    # of every second image its own caption is a reference
    rows = [json.loads(line) for line in (place / "captions.jsonl").read_text().splitlines()]
    for row, caption in list(zip(rows, wanted, strict=True))[::2]:
        row["captions"] = [caption, "word1 word2"]
    (place / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = evaluate(place, tmp_path / "out", "captioning", "own.jsonl", folder, MERGE, beams=1)
    assert [p["caption"] for p in lines(tmp_path / "out" / "predictions.jsonl")] == wanted
    scores = score_captions(wanted, [row["captions"] for row in rows])
    assert list(done["metrics"].values()) == pytest.approx([*scores.bleu, scores.cider])
    assert done["metrics"]["bleu1"] > 0.1
    each = [s["cider"] for s in lines(tmp_path / "out" / "scores.jsonl")]
    assert each == pytest.approx(scores.ciders)
    assert done["tokenizer"]


@torch.inference_mode()
def test_vqa(place: Path, tmp_path: Path) -> None:
    folder = test_answering.blip(tmp_path / "blip")
    answerer = load_answering(str(folder))
    turbovlm.apply(answerer.model, MERGE)
    wanted = [
        answerer.answer(answerer.prepare([p]), [f"word{n} word4"])[0]
        for n, p in enumerate(photographs(place))
    ]
    # three of its own answers are references: it is right there, and nowhere else
    rows = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    for row, answer in list(zip(rows, wanted, strict=True))[:3]:
        row["answers"] = [answer] * 10
    for row in rows[3:]:
        row["answers"] = ["never said"] * 10
    (place / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = evaluate(place, tmp_path / "out", "vqa", "asked.jsonl", folder, MERGE)
    assert [p["answer"] for p in lines(tmp_path / "out" / "predictions.jsonl")] == wanted
    assert done["metrics"] == {"accuracy": 3 / 8}
    for row in rows:
        row["answers"] = row["answers"][:1]
    (place / "gqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = evaluate(place, tmp_path / "exact", "vqa", "gqa.jsonl", folder, MERGE)
    assert done["metrics"] == {"exact": 3 / 8}


@torch.inference_mode()
def test_nlvr2(place: Path, tmp_path: Path) -> None:
    folder = test_answering.nlvr(tmp_path / "nlvr")
    done = evaluate(place, tmp_path / "out", "nlvr2", "pairs.jsonl", folder, MERGE)
    judge = load_statements(str(folder))
    turbovlm.apply(judge.model, MERGE)
    said, right, by_sentence = [], [], dict[str, list[bool]]()
    for line in (place / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        stem = row["identifier"].rpartition("-")[0]
        pair = [Image.open(place / "pairs" / f"{stem}-img{n}.png").convert("RGB") for n in (0, 1)]
        logits = judge.judge(judge.prepare(pair[:1]), judge.prepare(pair[1:]), [row["sentence"]])
        said.append(logits.argmax().item() == 1)
        right.append(said[-1] == (row["label"] == "True"))
        split, group, _, sentence = row["identifier"].split("-")
        by_sentence.setdefault(f"{split} {group} {sentence}", []).append(right[-1])
    assert [p["answer"] for p in lines(tmp_path / "out" / "predictions.jsonl")] == said
    assert len(by_sentence) == 6
    assert done["metrics"]["accuracy"] == sum(right) / 12
    whole = [all(values) for values in by_sentence.values()]
    assert done["metrics"]["consistency"] == pytest.approx(sum(whole) / len(whole))


def test_a_broken_image_takes_its_captions_along(place: Path, tmp_path: Path) -> None:
    (place / "images" / "noise9.png").write_bytes(b"no image")
    rows = (place / "captions.jsonl").read_text()
    broken = {"image": "noise9.png", "captions": ["word1", "word2"]}
    (place / "broken.jsonl").write_text(rows + "\n" + json.dumps(broken))
    folder = test_matching.dual(tmp_path / "clip", "clip")
    done = evaluate(place, tmp_path / "out", "retrieval", "broken.jsonl", folder, None)
    assert list(done["broken"]) == ["noise9.png"]
    whole = evaluate(place, tmp_path / "whole", "retrieval", "captions.jsonl", folder, None)
    assert done["metrics"] == whole["metrics"]


def test_limit_takes_the_first(place: Path, tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "vit")
    done = evaluate(place, tmp_path / "out", "classification", "labels.csv", folder, None, limit=3)
    assert done["examples"] == 3


@pytest.mark.parametrize(
    ("task", "data", "options", "error", "message"),
    [
        ("poetry", "labels.csv", {}, ConfigError, "use one of agreement, captioning"),
        ("classification", "captions.csv", {}, InputError, "captions.csv"),
        ("captioning", "captions.jsonl", {}, ModelError, "give a captioner"),
        ("retrieval", "captions.jsonl", {}, ModelError, "not for image-text retrieval"),
        ("vqa", "questions.jsonl", {}, ModelError, "not for visual question answering"),
        ("nlvr2", "pairs.jsonl", {}, ModelError, "not for judging"),
        ("nlvr2", "pairs.jsonl", {"weights": Path("x")}, ConfigError, "--weights is not for nlvr2"),
        ("classification", "labels.csv", {"answers": Path("x")}, ConfigError, "--answers goes"),
        ("classification", "labels.csv", {"limit": 0}, ConfigError, "--limit must be at least 1"),
    ],
)
def test_mistakes(
    place: Path,
    tmp_path: Path,
    task: str,
    data: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    folder = build.vit_classifier(tmp_path / "vit")
    with pytest.raises(error, match=message):
        evaluate(place, tmp_path / "out", task, data, folder, None, **options)
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_wanted(place: Path, tmp_path: Path) -> None:
    folder = build.blip(tmp_path / "blip")
    with pytest.raises(ModelError, match="give a classifier"):
        evaluate(place, tmp_path / "out", "classification", "labels.csv", folder, None)
    folder = test_matching.dual(tmp_path / "clip", "clip")
    with pytest.raises(ConfigError, match="--top must be at least 10"):
        evaluate(place, tmp_path / "out", "retrieval", "captions.jsonl", folder, None, top=5)
