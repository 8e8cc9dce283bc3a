"""`check` on vision-language models: the counts are those of the real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import turbovlm
from tests.language.build import IMAGE
from tests.language.zoo import CASES, LLAVA, NEXT, QWEN25, Case, hf
from turbovlm import Merge, VisualTokens, errors
from turbovlm.hosts.language import REFUSALS, ROWS
from turbovlm.measure import flops
from turbovlm.plug.language.apply import find
from turbovlm_workbench.compare.check import check_model
from turbovlm_workbench.compare.language import NEW_TOKENS, LanguageCheck, check_language
from turbovlm_workbench.load.picture import picture
from turbovlm_workbench.load.skeleton import TEXT_TOKENS, Skeleton, outline
from turbovlm_workbench.report.check import check_lines

KEEP = VisualTokens(keep=0.25)


def checked(case: Case, merge: Merge | None = None, keep: VisualTokens = KEEP) -> LanguageCheck:
    return check_language(case.build().to("meta"), merge, keep, 64)[0]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_host_is_counted(case: Case) -> None:
    whole, kept = checked(case).rows
    assert 0 < kept.visual < whole.visual
    assert kept.tower == whole.tower > 0
    assert 0 < kept.prefill < whole.prefill
    assert 0 < kept.step <= whole.step
    assert 0 < kept.cache_bytes <= whole.cache_bytes
    assert kept.choosing > 0 == whole.choosing


@pytest.mark.parametrize("configs", [(), (KEEP,)], ids=["as it is", "kept"])
def test_the_prefill_is_that_of_the_real_run(configs: tuple[VisualTokens, ...]) -> None:
    """LLaVA on a CPU, with values: the language model's operations are equal, to one."""
    model: Any = LLAVA.build()
    ids = torch.tensor([[IMAGE] * 36 + [7] * TEXT_TOKENS])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **LLAVA.pixels((1,))}
    row = checked(LLAVA).rows[len(configs)]
    if configs:
        turbovlm.apply(model, *configs)
    real = flops(model, {**given, "logits_to_keep": 1})
    language = real.by_module["model.language_model"] + real.by_module["lm_head"]
    assert round(row.prefill * 1e9) == language
    assert round(row.tower * 1e9) + round(row.choosing * 1e9) == real.macs - language


def test_the_cache_and_the_step_are_those_of_the_real_run() -> None:
    model: Any = LLAVA.build()
    ids = torch.tensor([[IMAGE] * 36 + [7] * TEXT_TOKENS])
    row = checked(LLAVA).rows[1]
    with turbovlm.applied(model, KEEP), torch.no_grad():
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **LLAVA.pixels((1,))}
        cache = model(**given, use_cache=True).cache
        held = sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values))
        assert row.cache_bytes == 2 * held
        assert cache.layers[0].keys.shape[2] == 9 + TEXT_TOKENS
        more = {
            "input_ids": torch.tensor([[7]]),
            "attention_mask": torch.ones(1, ids.shape[1] + 1, dtype=torch.long),
            "cache": cache,
        }
        assert round(row.step * 1e9) == flops(model, more).macs


def test_merging_alone_saves_in_the_tower_only() -> None:
    whole, merged, kept, both = checked(LLAVA, Merge(r=8)).rows
    assert merged.tower < whole.tower
    assert (merged.visual, merged.prefill) == (whole.visual, whole.prefill)
    assert (both.visual, both.tower) == (kept.visual, merged.tower)
    assert both.first < min(merged.first, kept.first)
    assert whole.answer == pytest.approx(whole.first + (NEW_TOKENS - 1) * whole.step)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name.startswith(("qwen", "glm", "pixtral", "mistral"))],
    ids=lambda c: c.name,
)
def test_merging_in_packed_towers_is_counted(case: Case) -> None:
    """As the real tower runs; which window loses how many is not known without values."""
    merge = Merge(ratio=0.2)
    whole, merged, _, both = checked(case, merge).rows
    model: Any = case.build()
    outer, row = find(model, ROWS, REFUSALS)
    given = picture(row, model.config, 64).given

    def run(outer: Any, _: object) -> None:
        outer.get_image_features(**given)

    assert flops(outer, (), call=run).macs == round(whole.tower * 1e9)
    with turbovlm.applied(model, merge):
        real = flops(outer, (), call=run).gflops
    assert merged.tower == pytest.approx(real, rel=0.02 if case is QWEN25 else 1e-9)
    assert both.tower == merged.tower < whole.tower


def test_what_is_kept_is_what_the_setting_keeps() -> None:
    model: Any = QWEN25.build()
    with turbovlm.applied(model, VisualTokens(keep=5)) as run, torch.no_grad():
        model(**QWEN25.inputs(1))
    kept = [len(image.kept) for image in run.visual.images]
    assert [r.visual for r in checked(QWEN25, keep=VisualTokens(keep=5)).rows] == [16, *kept]
    with pytest.raises(errors.ConfigError, match="more tokens than the 16"):
        checked(QWEN25, keep=VisualTokens(keep=17))


def test_the_check_tells_the_truth_about_merging_alone() -> None:
    model = LLAVA.build().to("meta")
    found = check_model(Skeleton("mine", model, {}, "a model"), Merge(r=8), KEEP)
    assert found.fits
    assert found.language is not None
    assert found.towers[0].tokens == (29, 21)
    text = check_lines(found)
    first, _ = found.language.allows(found.language.rows[1])
    assert f"Merge(r=8) alone allows {first:.2f}x to the first token" in text
    told = "supported: turbovlm.apply(model, turbovlm.Merge(r=8), turbovlm.VisualTokens(keep=0.25))"
    assert told in text
    data = found.to_dict()["language"]
    assert [row["visual"] for row in data["rows"]] == [36, 36, 9, 9]
    assert data["rows"][0]["speedup_first_token"] == 1
    assert data["rows"][3]["speedup_answer"] > 1


def test_what_is_no_vision_language_model_is_not_counted() -> None:
    bert = hf.BertModel(hf.BertConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=4))
    with pytest.raises(errors.UnknownArchitecture):
        check_language(bert.to("meta"), None, KEEP, None)


def test_a_host_that_cannot_be_counted_says_why() -> None:
    model: Any = LLAVA.build().to("meta")
    del model.model.multi_modal_projector.linear_2  # a broken checkpoint
    found = check_model(Skeleton("mine", model, {}, "a model"), Merge(r=4), KEEP)
    assert found.shortens
    assert found.language is None
    assert "known, but not counted" in check_lines(found)


def test_a_refused_language_model_gives_the_reason(tmp_path: Path) -> None:
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
            image_size=48, patch_size=8,
        ).to_dict(),
        qformer_config=hf.Blip2QFormerConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            encoder_hidden_size=32,
        ).to_dict(),
        text_config=hf.OPTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48,
            word_embed_proj_dim=32,
        ).to_dict(),
    )  # fmt: skip
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    found = check_model(outline(str(tmp_path)), Merge(r=4))
    assert found.merges
    assert not found.shortens
    assert "32 queries an image" in check_lines(found)


def test_tiles_are_not_the_size_of_the_picture(tmp_path: Path) -> None:
    """Where pictures are cut, the size is the picture's, and the tiles stay as they are."""
    model: Any = NEXT.build()
    model.config.architectures = ["LlavaNextForConditionalGeneration"]
    model.config.save_pretrained(tmp_path)
    built: list[Any] = [outline(str(tmp_path), size=size).whole for size in (48, 96)]
    assert [model.config.vision_config.image_size for model in built] == [48, 48]
    counts = [
        check_language(model, None, KEEP, size)[0]
        for model, size in zip(built, (48, 96), strict=True)
    ]
    assert counts[0].rows[0].visual < counts[1].rows[0].visual
