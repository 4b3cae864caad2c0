"""The catalogue of LLMs: price, context length and capabilities by a model's name.

The facts come from the package ``genai-prices``. It is pure data: nothing is read from disk or
network beyond importing it (its updater is never called), so this room may hold it, and settings
can fill an arm's traits in one place for all processes. What is answered depends on the installed
package only and never on the clock: of prices that change at a date it is the last one known, of
those that change by the hour the one at noon UTC. Otherwise replicas that start at different times
would see different traits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from optimizer.arm_traits import ArmTraits
from optimizer.errors import UnknownName

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

__all__ = ["CatalogueEntry", "entry", "find", "search", "traits"]

_LAST_PRICES = datetime(9999, 12, 31, 12, tzinfo=UTC)
_RESELLER = "openrouter"
"""Has most models, by their maker's name and their own."""
_CAPABILITIES = {
    "prompt caching": "cache_read_mtok",
    "audio in": "input_audio_mtok",
    "audio out": "output_audio_mtok",
    "images in": "input_image_mtok",
    "images out": "output_image_mtok",
    "web search": "web_searches_kcount",
}
"""What a model can do, if it has a price for it."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What is known of a model.

    Attributes
    ----------
    model
        Its name in the catalogue.
    provider
        Whose price this is; "settings" for a model that only the settings know.
    price_in_usd, price_out_usd
        List price of a million tokens, of short prompts where long ones cost more.
    context_tokens
        Longest context.
    speed_tokens_s
        Output tokens a second; only settings tell it.
    capabilities
        That have a price: ``prompt caching``, ``audio in`` and the like.
    deprecated
        The provider will take it away.
    """

    model: str
    provider: str
    price_in_usd: float | None = None
    price_out_usd: float | None = None
    context_tokens: int | None = None
    speed_tokens_s: float | None = None
    capabilities: tuple[str, ...] = ()
    deprecated: bool = False

    def traits(self) -> ArmTraits:
        """As the traits of an arm; what is free or not known is left out."""
        return ArmTraits(
            price_in_usd=self.price_in_usd or None,
            price_out_usd=self.price_out_usd or None,
            context_tokens=self.context_tokens or None,
            speed_tokens_s=self.speed_tokens_s,
        )


def find(model: str, overrides: Mapping[str, ArmTraits] | None = None) -> CatalogueEntry | None:
    """What is known of a model; None if nothing is.

    Parameters
    ----------
    model
        As callers write it: ``gpt-4o``, ``mistralai/mistral-large-2512``, with or without provider,
        with a date or without. A name with a provider is looked for there, then at OpenRouter; one
        without by what the catalogue knows of each provider's names.
    overrides
        Facts of the settings by the model's exact name; each that is given wins.

    Examples
    --------
    >>> find("gpt-4o").price_in_usd
    2.5
    >>> find("mistralai/mistral-large-2512").provider
    'mistral'
    >>> find("my-own-model") is None
    True
    >>> find("my-own-model", {"my-own-model": ArmTraits(price_in_usd=0.1)}).price_in_usd
    0.1
    """
    found = _built_in(model)
    own = (overrides or {}).get(model)
    if own is None:
        return found
    return replace(found or CatalogueEntry(model, "settings"), **own.model_dump(exclude_none=True))


def entry(model: str, overrides: Mapping[str, ArmTraits] | None = None) -> CatalogueEntry:
    """`find`, for a model that must be known.

    Raises
    ------
    UnknownName
        Naming models whose names are close.
    """
    found = find(model, overrides)
    if found is None:
        names = {*(overrides or {}), *(info.id for _, info in _models())}
        close = get_close_matches(model, sorted(names), n=3)
        hint = f"perhaps {' or '.join(close)}; or " if close else ""
        raise UnknownName("model", model, f"{hint}write it into `catalogue` of your settings")
    return found


def traits(model: str, overrides: Mapping[str, ArmTraits] | None = None) -> ArmTraits:
    """The traits of a model, empty where nothing is known."""
    found = find(model, overrides)
    return ArmTraits() if found is None else found.traits()


def search(text: str) -> Iterator[CatalogueEntry]:
    """Every entry of the package whose name or provider holds ``text``; all if it is empty."""
    sought = text.lower()
    for provider, info in _models():
        if sought in f"{provider.id}/{info.id}".lower():
            yield _entry(provider, info)


@cache
def _built_in(model: str) -> CatalogueEntry | None:
    found = [_entry(provider, info) for provider, info in _matches(model)]
    if not found:
        return None
    # Not every provider's list tells the context length.
    known = (one.context_tokens for one in found if one.context_tokens)
    return replace(found[0], context_tokens=next(known, None))


def _matches(model: str) -> Iterator[tuple[Provider, ModelInfo]]:
    """The model at its maker, then at the reseller."""
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    # The package takes a name's head for the provider where the provider is said to be LiteLLM.
    for provider_id in ("litellm", _RESELLER):
        try:
            yield snapshot.find_provider_model(model, None, provider_id, None)
        except LookupError:
            continue
    if "/" not in model:
        sold = [
            (provider, info)
            for provider, info in _models()
            if provider.id == _RESELLER and info.id.rpartition("/")[2] == model.lower()
        ]
        if len(sold) == 1:  # two makers with one name are two models
            yield sold[0]


def _models() -> Iterator[tuple[Provider, ModelInfo]]:
    from genai_prices.data_snapshot import get_snapshot

    for provider in get_snapshot().providers:
        for info in provider.models:
            yield provider, info


def _entry(provider: Provider, info: ModelInfo) -> CatalogueEntry:
    prices = info.get_prices(_LAST_PRICES)
    return CatalogueEntry(
        info.id,
        provider.id,
        _usd(prices, "input_mtok"),
        _usd(prices, "output_mtok"),
        info.context_window,
        capabilities=tuple(name for name, key in _CAPABILITIES.items() if _usd(prices, key)),
        deprecated=bool(info.deprecated),
    )


def _usd(prices: Any, key: str) -> float | None:
    value = getattr(prices, key, None)
    base = getattr(value, "base", value)
    return float(base) if isinstance(base, Decimal | int | float) else None
