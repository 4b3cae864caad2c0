"""`llmopt replay`: passes of policies over a recording, set beside fixed rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from feature_repo.embedding import Embedder
from infra.recordings import load_recording, load_traits
from optimizer.arm_traits import ArmTraits
from optimizer.errors import InvalidInput, InvalidRecording, UnknownName
from optimizer.extra_columns import FEATURE_SETS
from optimizer.features import FeatureEncoder
from optimizer.policies import (
    EXPLORATIONS,
    MODELS,
    POLICY_NAMES,
    Policy,
    PolicySettings,
    make_policy,
)
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Context, Matrix, Vector
from optimizer.replay import replay
from optimizer.replay_conditions import Conditions, course, parse_delay
from optimizer.replay_history import PassHistory
from optimizer.replay_seeds import Curve, interval, over_seeds, regret_curve
from optimizer.replay_summary import summary
from optimizer.reward import Objective, parse_weights

__all__ = ["ReplayRequest", "ReplayRun", "dearest_model", "encode", "run_replay"]


@dataclass(frozen=True)
class ReplayRequest:
    """What the command was asked.

    Attributes
    ----------
    data
        A file or a name, see `infra.recordings.load_recording`.
    policies
        Each one of `optimizer.policies.POLICY_NAMES` or MODEL+EXPLORATION; the one that ships if
        empty. ``static`` takes the dearest model, as a company does that always uses the biggest.
    seed, seeds
        The first seed, and how many from there on; each is one pass of each policy.
    weights
        ``quality=1,cost=0``; a part that is not named keeps its default.
    delay
        See `optimizer.replay_conditions.parse_delay`.
    missing
        Share of rewards that never come, in [0, 1].
    shift
        Another recording of the same models: the world from half-way on.
    new_arm
        A model that can be had from half-way on.
    budget_usd
        What each pass may cost.
    quality_floor
        In (0, 1]: least cost at this share of the best model's quality, in place of the weights.
    quality_price_usd
        Above 0: what a point of quality is worth a request, in place of the weights.
    frozen_after
        Requests after which nothing is learned any more.
    traits
        A YAML file of what is known of models beforehand, see `infra.recordings.load_traits`.
    features
        One of `optimizer.extra_columns.FEATURE_SETS`.
    """

    data: str
    policies: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 1
    weights: str | None = None
    delay: str | None = None
    missing: float = 0.0
    shift: str | None = None
    new_arm: str | None = None
    budget_usd: float | None = None
    quality_floor: float | None = None
    quality_price_usd: float | None = None
    frozen_after: int | None = None
    traits: Path | None = None
    features: str = "small"


@dataclass(frozen=True)
class ReplayRun:
    """What came out.

    Attributes
    ----------
    result
        The object of ``--json``: that of `optimizer.replay_summary.summary` for one policy and one
        seed, else that of `optimizer.replay_seeds.over_seeds` for the first policy, with
        ``policies``, the same of each.
    policies
        The object of each policy, by its name.
    curves
        Of cumulative regret, by the policy's name.
    static_model
        What ``static`` takes.
    """

    result: dict[str, Any]
    policies: dict[str, dict[str, Any]]
    curves: dict[str, Curve]
    static_model: str


@dataclass(frozen=True)
class _World:
    """All that passes have in common.

    Attributes
    ----------
    recorded
        Of both worlds where there are two; a model that arrives half-way is the last one.
    first_models
        Those that are there from the start.
    """

    recorded: RecordedOutcomes
    first_models: tuple[str, ...]
    static_model: str
    objective: Objective
    conditions: Conditions
    traits: Mapping[str, ArmTraits]


def run_replay(
    request: ReplayRequest,
    on_step: Callable[[int, int, str | None], None] = lambda done, total, label: None,
) -> ReplayRun:
    """Replay a recording: once for each policy and seed.

    Parameters
    ----------
    request
        What is asked.
    on_step
        Called after each request with the number done, the number of all, and what is being done.

    Raises
    ------
    InvalidInput
        Naming the option, or the part of a recording, that is refused.
    """
    settings = _policies(request.policies or (PolicySettings().name,))
    if request.seeds < 1:
        raise InvalidInput("seeds", request.seeds, "a number of passes, 1 or more")
    if request.features not in FEATURE_SETS:
        raise UnknownName("features", request.features, f"one of {', '.join(FEATURE_SETS)}")
    world = _world(request)
    seeds = range(request.seed, request.seed + request.seeds)
    each = len(course(len(world.recorded.prompts), request.seed, world.conditions).order)
    total, done = each * len(seeds) * len(settings), 0
    told: dict[str, list[dict[str, Any]]] = {one.name: [] for one in settings}
    regrets: dict[str, list[Vector]] = {one.name: [] for one in settings}
    with threadpool_limits(1):
        encoder, features = encode(world.recorded, FEATURE_SETS[request.features])
        # Seed by seed, so that what else the machine does falls on every policy alike.
        for seed in seeds:
            for one in settings:
                label = f"replay {one.name}" + (f", seed {seed}" if len(seeds) > 1 else "")

                def count(step: int, before: int = done, label: str = label) -> None:
                    on_step(before + step + 1, total, label)

                policy = _made(one, world, encoder)
                past = PassHistory(encoder, world.recorded.users) if encoder.knows_past else None
                result = replay(
                    world.recorded, features, policy, seed, count, world.conditions, past
                )
                told[one.name].append(summary(request.data, world.recorded, policy, seed, result))
                regrets[one.name].append(result.best - result.rewards)
                done += each
    told_of_all, policies = _described(told)
    curves = {name: regret_curve(paths) for name, paths in regrets.items()}
    return ReplayRun(told_of_all, policies, curves, world.static_model)


def encode(
    recorded: RecordedOutcomes, extra_groups: Sequence[str] = ()
) -> tuple[FeatureEncoder, Matrix]:
    """The encoder for a recording's tasks, and the features of its requests, shape (n, d).

    A recording has no times: every request comes at the same hour.

    Parameters
    ----------
    recorded
        The recording.
    extra_groups
        See `optimizer.features.FeatureEncoder`; columns of past requests are left 0.
    """
    embedder = Embedder()
    encoder = FeatureEncoder(sorted(set(recorded.tasks)), embedder.size, extra_groups)
    embeddings = embedder.embed_many(recorded.prompts)
    contexts = [
        Context(prompt=prompt, task=task)
        for prompt, task in zip(recorded.prompts, recorded.tasks, strict=True)
    ]
    users = None if recorded.users is None else [user or None for user in recorded.users]
    return encoder, encoder.encode_many(contexts, list(embeddings), 0.0, users)


def dearest_model(recorded: RecordedOutcomes) -> str:
    """The model with the highest mean cost."""
    return recorded.models[int(recorded.cost_usd.mean(axis=0).argmax())]


def _policies(names: tuple[str, ...]) -> list[PolicySettings]:
    settings = []
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput("policy", name, "each policy is named once")
        try:
            settings.append(PolicySettings.model_validate({"name": name}))
        except ValidationError:
            raise UnknownName(
                "policy",
                name,
                f"one of {', '.join(POLICY_NAMES)}, or MODEL+EXPLORATION with MODEL one of "
                f"{', '.join(MODELS)} and EXPLORATION one of {', '.join(EXPLORATIONS)}",
            ) from None
    return settings


def _world(request: ReplayRequest) -> _World:
    conditions = Conditions(
        delay=parse_delay(request.delay),
        missing=request.missing,
        new_arm=request.new_arm is not None,
        frozen_after=request.frozen_after,
        budget_usd=request.budget_usd,
    )
    limits = (request.quality_floor, request.quality_price_usd)
    if request.budget_usd is not None and limits != (None, None):
        raise InvalidInput(
            "budget", request.budget_usd, "only one of a budget, a quality floor and a price"
        )
    weights = parse_weights(request.weights)
    recorded = load_recording(request.data)
    if request.new_arm is not None:
        recorded = _last(recorded, request.new_arm)
    objective = replace(
        recorded.objective(weights),
        quality_floor=request.quality_floor,
        quality_price_usd=request.quality_price_usd,
    )
    first_models = recorded.models[:-1] if request.new_arm is not None else recorded.models
    static_model = dearest_model(recorded.only(first_models))
    if request.shift is not None:
        conditions = replace(conditions, shift_at=len(recorded.prompts))
        recorded = _joined(recorded, request.shift)
    if request.budget_usd is not None:
        steps = len(course(len(recorded.prompts), request.seed, conditions).order)
        objective = replace(objective, budget_usd=request.budget_usd / steps)
    traits = {} if request.traits is None else load_traits(request.traits, recorded.models)
    return _World(recorded, first_models, static_model, objective, conditions, traits)


def _last(recorded: RecordedOutcomes, model: str) -> RecordedOutcomes:
    """The recording with ``model`` as its last one."""
    others = [other for other in recorded.models if other != model]
    if len(others) == len(recorded.models):
        raise UnknownName("new_arm", model, f"one of the models: {', '.join(recorded.models)}")
    if not others:
        raise InvalidInput("new_arm", model, "another model has to be there from the start")
    return recorded.only([*others, model])


def _joined(recorded: RecordedOutcomes, shift: str) -> RecordedOutcomes:
    other = load_recording(shift)
    if set(other.models) == set(recorded.models):
        other = other.only(recorded.models)
    try:
        return recorded.followed_by(other)
    except InvalidRecording as error:
        raise InvalidRecording(
            f"shift: {shift}: {error.field}", error.value, error.remedy
        ) from None


def _made(settings: PolicySettings, world: _World, encoder: FeatureEncoder) -> Policy:
    policy = make_policy(
        settings,
        [Arm(model) for model in world.first_models],
        encoder.size,
        world.objective,
        static_arm=world.first_models.index(world.static_model),
        schema_id=encoder.schema_id,
        groups=encoder.groups,
    )
    policy.describe({Arm(model).id: told.values() for model, told in world.traits.items()})
    return policy


def _described(
    told: dict[str, list[dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The object of ``--json``, and that of each policy."""
    (first, passes), *others = told.items()
    if not others and len(passes) == 1:
        return passes[0], {first: passes[0]}
    policies = {name: over_seeds(each) for name, each in told.items()}
    for name, each in others:
        pairs = zip(each, passes, strict=True)
        policies[name]["reward_minus_first"] = asdict(
            interval([one["reward"] - of_first["reward"] for one, of_first in pairs])
        )
    return {**policies[first], "policies": list(policies.values())}, policies
