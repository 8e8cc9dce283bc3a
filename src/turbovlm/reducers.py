"""The registry of reducers: which kind of configuration is put in by what."""

from __future__ import annotations

from turbovlm import hosts
from turbovlm.config import Merge, MergeRestore, Setting
from turbovlm.errors import ConfigError, UnknownArchitecture
from turbovlm.plug.denoiser import apply as denoiser
from turbovlm.plug.encoder import apply as encoder
from turbovlm.plug.reducer import Reducer, parts_of

_REDUCERS: dict[str, Reducer] = {}


def register_reducer(reducer: Reducer) -> None:
    """Add a kind of configuration that `turbovlm.apply` takes.

    Raises:
        ConfigError: if its ``kind`` is taken.
    """
    kind = reducer.config.kind
    if kind in _REDUCERS:
        raise ConfigError(f"a reducer for {kind!r} exists already: give the configuration another")
    _REDUCERS[kind] = reducer


def find_reducer(config: object) -> Reducer:
    """The reducer of a configuration.

    Raises:
        ConfigError: if it is none that is known.
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
        raise ConfigError(f"a setting of the kind {kind!r} is stored: this version knows none")
    return _REDUCERS[kind].config.from_dict(told)


def _plan_merge(model: object, config: Merge) -> list[encoder.Swap]:
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


def _plan_restore(model: object, config: MergeRestore) -> list[encoder.Swap]:
    return denoiser.restore_swaps(model, config, hosts.denoisers())


register_reducer(Reducer(Merge, _plan_merge))
register_reducer(Reducer(MergeRestore, _plan_restore))
