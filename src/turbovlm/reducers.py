"""The registry of reducers: which one handles which kind of configuration."""

from __future__ import annotations

from turbovlm import hosts
from turbovlm.config import Merge, MergeRestore, Setting, VisualTokens
from turbovlm.errors import ConfigError, UnknownArchitecture
from turbovlm.hosts.language import REFUSALS as LANGUAGE_REFUSALS
from turbovlm.hosts.language import ROWS as LANGUAGE_ROWS
from turbovlm.plug.denoiser import apply as denoiser
from turbovlm.plug.encoder import apply as encoder
from turbovlm.plug.language import apply as language
from turbovlm.plug.reducer import Reducer, parts_of
from turbovlm.plug.swap import Swap

_REDUCERS: dict[str, Reducer] = {}


def register_reducer(reducer: Reducer) -> None:
    """Add a kind of configuration that `turbovlm.apply` takes.

    Raises:
        ConfigError: if its ``kind`` is taken.
    """
    kind = reducer.config.kind
    if kind in _REDUCERS:
        raise ConfigError(f"a reducer for {kind!r} exists already: choose another kind")
    _REDUCERS[kind] = reducer


def find_reducer(config: object) -> Reducer:
    """The reducer of a configuration.

    Raises:
        ConfigError: if no reducer takes it.
    """
    found = _REDUCERS.get(getattr(config, "kind", ""))
    if found is None or not isinstance(config, found.config):
        known = ", ".join(f"turbovlm.{r.config.__name__}(...)" for r in _REDUCERS.values())
        raise ConfigError(f"expected one of {known}, got {type(config).__name__}")
    return found


def setting_of(told: dict[str, object]) -> Setting:
    """A stored setting, from plain values.

    Raises:
        ConfigError: if its kind is not known, or a value is out of range.
    """
    kind = told.get("kind", Merge.kind)
    if not isinstance(kind, str) or kind not in _REDUCERS:
        raise ConfigError(
            f"a setting of the kind {kind!r} is stored, but nothing registered handles it: import "
            "the package that adds it, or give apply a setting"
        )
    return _REDUCERS[kind].config.from_dict(told)


def _plan_merge(model: object, config: Merge) -> list[Swap]:
    parts = parts_of(model)
    if any(denoiser.find_denoisers(part, hosts.denoisers()) for part in parts):
        raise ConfigError(
            "a denoiser needs its pixels back: turbovlm.apply(pipe, "
            "turbovlm.MergeRestore(ratio=0.3))"
        )
    if parts != [model]:
        raise UnknownArchitecture(
            f"turbovlm.Merge is for encoders: give it a model, not a {type(model).__name__}"
        )
    return encoder.merge_swaps(parts[0], config, hosts.rows(), hosts.REFUSALS)


def _plan_restore(model: object, config: MergeRestore) -> list[Swap]:
    return denoiser.restore_swaps(model, config, hosts.denoisers())


def _plan_tokens(model: object, config: VisualTokens) -> list[Swap]:
    parts = parts_of(model)
    if parts != [model]:
        raise UnknownArchitecture(
            f"turbovlm.VisualTokens is for vision-language models, not a {type(model).__name__}"
        )
    return language.language_swaps(parts[0], config, LANGUAGE_ROWS, LANGUAGE_REFUSALS)


register_reducer(Reducer(Merge, _plan_merge))
register_reducer(Reducer(MergeRestore, _plan_restore))
register_reducer(Reducer(VisualTokens, _plan_tokens))
