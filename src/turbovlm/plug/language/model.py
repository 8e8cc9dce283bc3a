"""The classes mixed in front of a vision-language model, its head and its language model.

All of them act in ``__call__``, before and after the host's own ``forward``: its signature, which
``generate`` reads, stays the host's, and a compiled forward has no break inside.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.language.picture import mark, mark_packed
from turbovlm.plug.language.shorten import Step, shorten
from turbovlm.plug.language.state import LanguageCall, LanguagePatch, LanguageSite
from turbovlm.plug.names import bind
from turbovlm.plug.swap import site_of
from turbovlm.plug.torch_private import never_compiled

# they read values and change classes, which a compiler cannot follow
_SHORTEN = never_compiled(shorten)
_FINISH = never_compiled(Step.finish)


class TurboHead(nn.Module):
    """The model with its head: refuses what cannot be right."""

    turbo_site: LanguageSite

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the host takes and returns.

        Raises:
            UnsupportedInput: for labels, and for logits at positions of the whole prompt.
        """
        if site_of(self) is None:  # made anew from a patched model's class
            return super().__call__(*args, **kwargs)
        given = bind(self.turbo_site.names, args, kwargs)
        if given.get("labels") is not None:
            raise UnsupportedInput(
                "labels are laid out along all tokens of the prompt, and the logits along those "
                "that stay: turbovlm.remove(model) to train or to measure a loss"
            )
        if isinstance(given.get("logits_to_keep"), Tensor):
            raise UnsupportedInput(
                "logits_to_keep names positions of the whole prompt: give the number of logits at "
                "its end"
            )
        return super().__call__(*args, **kwargs)

    def _assisted_decoding(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedInput(
            "assisted decoding compares candidates with logits of the whole prompt: leave out the "
            "assistant and prompt_lookup_num_tokens, or turbovlm.remove(model)"
        )

    def _prefill(self, input_ids: Any, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(generation_config, "prefill_chunk_size", None) is not None:
            raise UnsupportedInput(
                "a prompt in chunks can cut through an image, of which all tokens are needed to "
                "choose: leave out prefill_chunk_size"
            )
        return cast(Any, super())._prefill(input_ids, generation_config, *args, **kwargs)


class TurboOuter(nn.Module):
    """The model that sees the prompt: notes where the images are while it runs."""

    turbo_site: LanguageSite

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the host takes and returns.

        Raises:
            UnsupportedInput: if it is not known which positions are visual.
        """
        site = site_of(self)
        if site is None:
            return super().__call__(*args, **kwargs)
        with site.patch.running(_begin(site, self, bind(site.names, args, kwargs))):
            return super().__call__(*args, **kwargs)

    @property
    def get_image_features(self) -> Callable[..., Any]:
        """The host's own; how the tokens lie in each image is noted on its features."""
        return _watched(self, cast(Any, super()).get_image_features, "image")

    @property
    def get_video_features(self) -> Callable[..., Any]:
        """The host's own; how the tokens lie in each video is noted on its features."""
        return _watched(self, cast(Any, super()).get_video_features, "video")


class TurboPackedOuter(TurboOuter):
    """One that packs tiles into rows with newline tokens."""

    @property
    def pack_image_features(self) -> Callable[..., Any]:
        """The host's own; how the tokens lie, newlines among them, is noted on the features."""
        pack = cast(Any, super()).pack_image_features

        @functools.wraps(pack)
        def run(*args: Any, **kwargs: Any) -> Any:
            packed, lengths = pack(*args, **kwargs)
            mark_packed(pack, args, kwargs, packed)
            return packed, lengths

        return run


class TurboLanguage(nn.Module):
    """The language model: handed fewer visual tokens."""

    turbo_site: LanguageSite

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the host takes and returns."""
        site = site_of(self)
        if site is None:
            return super().__call__(*args, **kwargs)
        step = _SHORTEN(site.patch, self, bind(site.names, args, kwargs))
        if step is None:
            return super().__call__(*args, **kwargs)
        try:
            output = super().__call__(**step.given)
        except BaseException:
            step.undo()
            raise
        _FINISH(step, output)
        return output


def _begin(site: LanguageSite, outer: nn.Module, given: dict[str, Any]) -> LanguageCall | None:
    """What is known of the prompt before the outer model runs."""
    ids, features = given.get("input_ids"), given.get("mm_encoder_outputs")
    if ids is None:
        embeddings = given.get("inputs_embeds")
        if embeddings is not None and embeddings.shape[1] > 1:
            raise UnsupportedInput(
                "inputs_embeds alone do not say which positions are visual: pass input_ids and "
                "pixel_values, or turbovlm.remove(model)"
            )
        return None
    if outer.training and torch.is_grad_enabled():
        raise UnsupportedInput(
            "visual tokens are reduced for inference: call model.eval(), or turbovlm.remove(model) "
            "to train"
        )
    if not isinstance(features, dict | None):
        raise UnsupportedInput(
            f"mm_encoder_outputs is a {type(features).__name__}: give the dictionary that "
            "get_image_features fills"
        )
    mask = given.get("attention_mask")
    call = LanguageCall(ids, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)
    for modality, output in (features or {}).items():
        if output is not None:
            call.features[modality] = output["pooler_output"]
    _check_images(site.patch, ids, given, call)
    return call


def _check_images(
    patch: LanguagePatch, ids: Tensor, given: dict[str, Any], call: LanguageCall
) -> None:
    """Placeholders of a prompt need images, which a decoding step does not have any more."""
    pixels = any(v is not None and n.startswith("pixel_values") for n, v in given.items())
    if ids.shape[1] == 1 or pixels or call.features:
        return
    placeholders = torch.tensor(list(patch.tokens.values()), device=ids.device)
    if bool(torch.isin(ids, placeholders).any()):
        raise UnsupportedInput(
            "the prompt has image tokens and no image was given with it: pass pixel_values, or "
            "take the tokens out"
        )


def _watched(outer: TurboOuter, host: Callable[..., Any], modality: str) -> Callable[..., Any]:
    if site_of(outer) is None:
        return host
    patch = outer.turbo_site.patch

    @functools.wraps(host)  # generate() reads the signature
    def run(*args: Any, **kwargs: Any) -> Any:
        call = patch.current()
        before = {} if call is None else dict(call.features)
        output = host(*args, **kwargs)
        features = getattr(output, "pooler_output", None)
        if features is not None:
            given = inspect.signature(host).bind(*args, **kwargs).arguments
            mark(patch.row, outer, given, features, modality)
            if call is not None:  # a host's videos may have gone through get_image_features
                call.features = before | {modality: features}
        return output

    return run
