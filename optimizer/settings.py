"""Settings: one YAML file plus ``LLMOPT_*`` variables; a key nobody knows is refused.

A variable wins over the file; nested keys are joined by two underscores, as in
``LLMOPT_PORTS__MLFLOW=5050``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from optimizer import catalogue
from optimizer.alert_settings import AlertSettings
from optimizer.arm_traits import ArmTraits
from optimizer.budget_settings import BudgetSettings
from optimizer.drift_settings import DriftSettings
from optimizer.errors import InvalidInput, InvalidSettings, UnknownName
from optimizer.extra_columns import FEATURE_SETS, LIVE_FEATURE_SETS
from optimizer.policies.names import PolicySettings
from optimizer.records import Arm
from optimizer.reward import Objective, Weights
from optimizer.rollout.settings import CanarySettings
from optimizer.signals import SignalSettings, signals_of
from optimizer.tuning_settings import TuningSettings

__all__ = [
    "ArmSettings",
    "Autoscaling",
    "DecisionPoint",
    "Guardrails",
    "LearnerSettings",
    "Ports",
    "RetentionSettings",
    "ServingSettings",
    "Settings",
    "load_settings",
]

SETTINGS_VARIABLE = "LLMOPT_SETTINGS"
DEFAULT_FILE = "llmopt.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArmSettings(_Strict):
    """One arm of a decision point."""

    model: str = Field(min_length=1, max_length=200, description="name the caller knows it by")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="handed to the caller with the decision, as it is"
    )
    prompt_variant: str = Field("default", min_length=1, description="which prompt to use")
    traits: ArmTraits = Field(
        ArmTraits(),
        description="what is known of it beforehand; that of the catalogue if left out, see "
        "`optimizer.catalogue`",
    )

    def arm(self) -> Arm:
        """The record that policies and tokens use."""
        return Arm(self.model, self.parameters, self.prompt_variant, self.traits.values())


class Guardrails(_Strict):
    """When an arm or a policy is held back, relative to what it is compared with."""

    quality_drop: float = Field(0.05, ge=0, le=1, description="largest loss of quality, relative")
    cost_rise: float = Field(0.10, ge=0, description="largest rise of cost, relative")
    latency_rise: float = Field(0.20, ge=0, description="largest rise of p95 latency, relative")
    error_rate: float = Field(
        0.9, gt=0, le=1, description="an arm that fails more often than this lately is set aside"
    )


class DecisionPoint(_Strict):
    """A named place in the user's application where a choice is made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", description="its name")
    arms: tuple[ArmSettings, ...] = Field(min_length=1, max_length=200, description="the choices")
    tasks: tuple[str, ...] = Field(
        (), max_length=200, description="known values of `context.task`; others share one feature"
    )
    retired_features: tuple[str, ...] = Field(
        (),
        max_length=1000,
        description="features (`task=math`, `embedding_*`) that new policy versions do without; "
        "they are still computed for older ones, until they are taken out of the settings",
    )
    weights: Weights = Field(Weights(), description="weights of the reward's parts")
    cost_cap_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="cost at which a request earns nothing for it"
    )
    latency_cap_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="latency at which a request earns nothing"
    )
    quality_floor: float | None = Field(
        None,
        gt=0,
        le=1,
        description="look for the least cost at this share of the best arm's quality, in place of "
        "the weights, which then make only the reward that people read",
    )
    quality_price_usd: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="what one point of quality (from 0 to 1) is worth for one request: policies "
        "maximise `quality_price_usd * quality - cost_usd`, in place of the weights; needs "
        "`cost_cap_usd`, excludes `quality_floor`",
    )
    policy: PolicySettings = Field(PolicySettings(), description="how it decides")
    features: str = Field(
        "small",
        description="what policies see of a request: `small`, or `facts` (also length, reading "
        "difficulty, language, calendar and hash of the unit id); those of past requests (`full`) "
        "are for replays alone, since replicas hold no history; another choice learns anew",
    )
    control_share: float = Field(
        0.05, ge=0, le=0.5, description="permanent share of units that are decided uniformly"
    )
    static_arm: str | None = Field(
        None, description="model that decides when no policy can; the first arm if left out"
    )
    guardrails: Guardrails = Field(Guardrails(), description="limits that hold arms back")
    canary: CanarySettings = Field(CanarySettings(), description="how a challenger gets traffic")
    attribution_window_s: float = Field(
        7 * 86400.0, gt=0, description="time after which a decision without reward is closed"
    )
    default_quality: float | None = Field(
        None, ge=0, le=1, description="quality of a decision closed without reward; none if empty"
    )
    signals: dict[str, SignalSettings] = Field(
        default_factory=dict,
        description="kinds of signals with other weights, parts or ranges than those of "
        "`optimizer.signals`, and kinds of your own",
    )

    proxy_quality: bool = Field(
        False,
        description="close a decision without reward with the quality that the trained model "
        "predicts, marked as such, in place of `default_quality`; a real signal replaces it",
    )
    retry_below: float | None = Field(
        None,
        ge=0,
        le=1,
        description="predicted quality under which `POST /v1/quality` looks for a better arm; it "
        "advises nothing if left out",
    )
    retry_gain: float = Field(
        0.1, ge=0, le=1, description="least gain of predicted quality that is worth a retry"
    )

    @field_validator("features")
    @classmethod
    def _live(cls, features: str) -> str:
        if features in LIVE_FEATURE_SETS:
            return features
        known = f"must be one of {', '.join(LIVE_FEATURE_SETS)}"
        if features in FEATURE_SETS:
            known += ": it needs the history of past requests, which only replays carry"
        raise ValueError(f"features={features!r} {known}")

    @model_validator(mode="after")
    def _consistent(self) -> DecisionPoint:
        arms = self.records()
        if len({arm.id for arm in arms}) != len(arms):
            raise ValueError(f"decision point {self.name!r} has the same arm twice")
        models = [arm.model for arm in arms]
        if self.static_arm is not None and self.static_arm not in models:
            raise ValueError(f"static_arm={self.static_arm!r} must be one of {models}")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"decision point {self.name!r} names a task twice")
        self.objective()
        try:
            signals_of(self.signals)
        except InvalidInput as error:  # pydantic takes no other errors as its own
            raise ValueError(str(error)) from None
        return self

    def records(self) -> tuple[Arm, ...]:
        """The arms, in the order of probabilities."""
        return tuple(arm.arm() for arm in self.arms)

    def objective(self) -> Objective:
        """What is maximised here."""
        return Objective(
            self.weights,
            self.cost_cap_usd,
            self.latency_cap_s,
            self.quality_floor,
            quality_price_usd=self.quality_price_usd,
        )

    @property
    def static_index(self) -> int:
        """Index of the static rule's arm."""
        models = [arm.model for arm in self.arms]
        return 0 if self.static_arm is None else models.index(self.static_arm)


class Ports(_Strict):
    """Ports of the embedded parts and of the two doors."""

    ingress: int = Field(8000, ge=1, le=65535, description="Ray Serve's ingress")
    fast_lane: int = Field(8001, ge=1, le=65535, description="the replicas' own door")
    mlflow: int = Field(5000, ge=1, le=65535, description="MLflow and its UI")
    prefect: int = Field(4200, ge=1, le=65535, description="Prefect and its dashboard")
    ray_dashboard: int = Field(8265, ge=1, le=65535, description="Ray's dashboard")
    postgres: int = Field(5439, ge=1, le=65535, description="embedded PostgreSQL")
    valkey: int = Field(6399, ge=1, le=65535, description="embedded Valkey")
    haproxy_metrics: int = Field(
        9101, ge=1, le=65535, description="metrics of Ray Serve's HAProxy, on all interfaces"
    )
    haproxy_stats: int = Field(
        8404, ge=1, le=65535, description="statistics page of Ray Serve's HAProxy, likewise"
    )


class LearnerSettings(_Strict):
    """How often the learner does what it does."""

    batch_s: float = Field(0.1, gt=0, le=60, description="longest wait before rewards are learned")
    batch_rewards: int = Field(1000, ge=1, le=100_000, description="rewards learned at once")
    checkpoint_s: float = Field(5.0, gt=0, description="between checkpoints in PostgreSQL")
    version_rewards: int = Field(
        10_000, ge=1, description="rewards between versions in MLflow; the first comes after 1,000"
    )
    version_s: float = Field(3600.0, gt=0, description="longest time between versions in MLflow")
    versions_kept: int = Field(5, ge=1, description="versions of a decision point kept in MLflow")


class RetentionSettings(_Strict):
    """How long what grows with time is kept, in whole days."""

    features_days: int = Field(
        14, ge=1, le=3650, description="the arms' statistics and windows, for point-in-time joins"
    )
    decisions_days: int = Field(90, ge=1, le=3650, description="the decision log")
    rewards_days: int = Field(90, ge=1, le=3650, description="the reward ledger")
    audit_days: int = Field(
        730, ge=365, le=36_500, description="the audit trail, and states of archived variants"
    )
    reports_days: int = Field(365, ge=1, le=3650, description="reports in MLflow")
    runs_days: int = Field(30, ge=1, le=3650, description="runs of flows in Prefect")
    export_folder: Path | None = Field(
        None,
        description="where rows that are over go as parquet files before they are dropped, seen "
        "from `home`; they are dropped without a copy if left out",
    )

    @property
    def ledger_days(self) -> int:
        """So long a reward may come: rewards are not dropped before the decisions they belong to.

        Else a decision whose rewards are gone would look like one that never got any.
        """
        return max(self.decisions_days, self.rewards_days)


class Autoscaling(_Strict):
    """How many replicas there are, by the decisions they make."""

    min_replicas: int = Field(1, ge=1, le=64, description="at least so many")
    max_replicas: int = Field(4, ge=1, le=64, description="at most so many")
    decisions_per_s: float = Field(
        8000.0, gt=0, allow_inf_nan=False, description="what one replica is to make"
    )
    upscale_delay_s: float = Field(10.0, ge=0, description="load must last so long to add one")
    downscale_delay_s: float = Field(300.0, ge=0, description="and be gone so long to take one")
    ahead_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="how early a replica must be asked for: the hourly forecast is looked at so "
        "far ahead; 0 goes by the measured load alone",
    )
    ahead_level: float = Field(
        0.95,
        ge=0.5,
        le=0.99,
        description="share of cases in which the load so far ahead must find room",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} must not be above "
                f"max_replicas={self.max_replicas}"
            )
        return self


class ServingSettings(_Strict):
    """What a replica holds and takes."""

    queue: int = Field(
        1000, ge=1, le=100_000, description="decisions that may wait; beyond it the answer is 503"
    )
    live_policies: int = Field(
        32, ge=1, description="policies in memory; the longest unused are let go first"
    )
    autoscaling: Autoscaling | None = Field(
        None, description="let Ray Serve change the number of replicas; `replicas` if left out"
    )


class FeatureLimits(_Strict):
    """When features raise an alert."""

    online_s: float = Field(1.0, gt=0, description="age of online values that raises an alert")
    offline_s: float = Field(3600.0, gt=0, description="the same since the last offline log")
    violation_s: float = Field(60.0, gt=0, description="how long a value out of range is told")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="LLMOPT_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    home: Path = Field(Path(".llmopt"), description="folder of all state")
    host: str = Field("127.0.0.1", description="address that everything binds to")
    ports: Ports = Field(Ports(), description="ports of the embedded parts")
    postgres_url: str | None = Field(None, description="your own PostgreSQL, instead of ours")
    valkey_url: str | None = Field(None, description="your own Valkey or Redis, instead of ours")
    mlflow_url: str | None = Field(None, description="your own MLflow server, instead of ours")
    prefect_url: str | None = Field(None, description="your own Prefect API, instead of ours")
    ray_address: str | None = Field(None, description="your own Ray cluster, instead of ours")
    replicas: int = Field(1, ge=1, le=64, description="replicas of the serving application")
    token_keys: tuple[SecretStr, ...] = Field(
        (), description="keys that sign decisions, newest first; made at the first start if empty"
    )
    serving: ServingSettings = Field(ServingSettings(), description="what a replica holds")
    learner: LearnerSettings = Field(LearnerSettings(), description="the learner's rhythm")
    retention: RetentionSettings = Field(
        RetentionSettings(), description="how long what grows with time is kept"
    )
    feature_limits: FeatureLimits = Field(
        FeatureLimits(), description="when features raise an alert"
    )
    drift: DriftSettings = Field(DriftSettings(), description="when drift is told, what is done")
    tuning: TuningSettings = Field(
        TuningSettings(), description="how parameters of models are tuned"
    )
    alerts: AlertSettings = Field(AlertSettings(), description="where people are told")
    mlflow_artifacts: str | None = Field(
        None,
        pattern=r"^(s3|file)://.+",
        description="where our MLflow keeps files, for instance s3://bucket/folder (with the usual "
        "AWS_* variables); a folder of `home` if left out",
    )
    prompts: Path | None = Field(
        None,
        description="folder of prompt variants, DECISION_POINT/VARIANT.md; each variant that an "
        "arm names must be there then, except `default`",
    )
    catalogue: dict[str, ArmTraits] = Field(
        default_factory=dict,
        description="facts about models by their names, in place of what the catalogue says",
    )
    budget: BudgetSettings | None = Field(
        None, description="money for all decision points together; nothing is planned if left out"
    )
    decision_points: tuple[DecisionPoint, ...] = Field(
        min_length=1, max_length=100, description="where choices are made"
    )

    @field_validator("decision_points")
    @classmethod
    def _with_traits(
        cls, points: tuple[DecisionPoint, ...], info: ValidationInfo
    ) -> tuple[DecisionPoint, ...]:
        """Take traits from the catalogue where an arm has none of its own.

        Here and nowhere else: all processes read these settings, and a policy version keeps the
        traits it was made with, whatever a later catalogue says.
        """
        overrides = info.data.get("catalogue", {})
        return tuple(
            point.model_copy(
                update={"arms": tuple(_described(arm, overrides) for arm in point.arms)}
            )
            for point in points
        )

    @model_validator(mode="after")
    def _distinct(self) -> Settings:
        names = [point.name for point in self.decision_points]
        if len(set(names)) != len(names):
            raise ValueError(f"decision points must have different names, got {names}")
        ports = list(self.ports.model_dump().values())
        if len(set(ports)) != len(ports):
            raise ValueError(f"ports must differ, got {self.ports.model_dump()}")
        return self

    @model_validator(mode="after")
    def _budget_names_decision_points(self) -> Settings:
        names = [point.name for point in self.decision_points]
        for service in {} if self.budget is None else self.budget.services:
            if service not in names:
                raise ValueError(f"budget.services names {service!r}, which is none of {names}")
        return self

    @model_validator(mode="after")
    def _kept_long_enough(self) -> Settings:
        """A reward may come, and change what was said before, while its decision's window is open.

        A day more, since a partition goes as a whole.
        """
        for point in self.decision_points:
            least = math.ceil(point.attribution_window_s / 86400.0) + 1
            for name in ("decisions_days", "rewards_days"):
                days = getattr(self.retention, name)
                if days < least:
                    raise ValueError(
                        f"retention.{name}={days} must be at least {least}: decision point "
                        f"{point.name!r} has attribution_window_s={point.attribution_window_s:g}"
                    )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables win over what is given (the file's content)."""
        return (env_settings, init_settings)

    def decision_point(self, name: str) -> DecisionPoint:
        """The decision point of that name.

        Raises
        ------
        UnknownName
            If there is none.
        """
        for point in self.decision_points:
            if point.name == name:
                return point
        known = [point.name for point in self.decision_points]
        raise UnknownName("decision_point", name, f"one of {known}")

    def postgres_dsn(self, database: str = "llmopt") -> str:
        """URL of a database on the PostgreSQL server, ours or the user's."""
        if self.postgres_url is None:
            return f"postgresql://postgres@{self.host}:{self.ports.postgres}/{database}"
        if database == "llmopt":
            return self.postgres_url
        head, _, options = self.postgres_url.partition("?")
        base = head.rpartition("/")[0]
        return f"{base}/{quote(database)}" + (f"?{options}" if options else "")

    @property
    def valkey_address(self) -> str:
        """URL of Valkey, ours or the user's."""
        return self.valkey_url or f"redis://{self.host}:{self.ports.valkey}/0"

    @property
    def mlflow_address(self) -> str:
        """URL of the MLflow server, ours or the user's."""
        return self.mlflow_url or f"http://{self.host}:{self.ports.mlflow}"

    @property
    def prefect_address(self) -> str:
        """URL of the Prefect API, ours or the user's."""
        return self.prefect_url or f"http://{self.host}:{self.ports.prefect}/api"


def load_settings(
    path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Read the settings file, then the environment.

    Parameters
    ----------
    path
        The YAML file; else what ``LLMOPT_SETTINGS`` names, else ``llmopt.yaml`` here.
    environment
        Where unknown ``LLMOPT_*`` names are looked for.

    Raises
    ------
    InvalidSettings
        Naming the file, the key, the value and what would be accepted.
    """
    file = path or Path(environment.get(SETTINGS_VARIABLE, DEFAULT_FILE))
    if not file.is_file():
        raise InvalidSettings(
            f"no settings file {str(file)!r}: name yours in {SETTINGS_VARIABLE}, or start from the "
            "example infra/llmopt.yaml"
        )
    _refuse_unknown_variables(environment)
    try:
        content = YamlConfigSettingsSource(Settings, yaml_file=file)()
        return Settings(**content)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']} "
            f"(got {_shown(problem)})"
            for problem in error.errors()
        ]
        raise InvalidSettings(f"{file} or LLMOPT_* is wrong:\n" + "\n".join(lines)) from None
    except Exception as error:
        raise InvalidSettings(f"{file} cannot be read: {error}") from error


def _described(arm: ArmSettings, overrides: Mapping[str, ArmTraits]) -> ArmSettings:
    if "traits" in arm.model_fields_set:
        return arm
    return arm.model_copy(update={"traits": catalogue.traits(arm.model, overrides)})


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {f"LLMOPT_{name.upper()}" for name in Settings.model_fields} | {SETTINGS_VARIABLE}
    for name in environment:
        if name.startswith("LLMOPT_") and name.split("__")[0].upper() not in known:
            close = get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InvalidSettings(f"unknown variable {name}{hint}")


def _shown(problem: Any) -> str:
    """What was given, but never an address that is a secret."""
    return "a secret" if "webhook_url" in problem["loc"] else _short(problem["input"])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
