"""`llmopt replay`: one pass of a policy over a recording, set beside fixed rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
from threadpoolctl import threadpool_limits

from feature_repo.embedding import Embedder
from infra.recordings import load_recording
from optimizer.errors import UnknownName
from optimizer.features import FeatureEncoder
from optimizer.policies import POLICY_NAMES, PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Context, Matrix
from optimizer.replay import replay, summary
from optimizer.reward import parse_weights

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["comparison_table", "dearest_model", "encode", "run_replay"]

_RULES = {
    "best_single": "best single model",
    "cheapest": "cheapest model",
    "random": "uniform random",
    "oracle": "oracle (sees every outcome)",
}


def run_replay(
    data: str,
    policy: str = "linucb",
    seed: int = 0,
    weights: str | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], RecordedOutcomes]:
    """Replay a recording once.

    Parameters
    ----------
    data
        A file or a name, see `infra.recordings.load_recording`.
    policy
        One of `optimizer.policies.POLICY_NAMES`; ``static`` takes the dearest model, as a company
        does that always uses the biggest.
    seed
        Of the order of requests and of the draws.
    weights
        ``quality=1,cost=0``; a part that is not named keeps its default.
    on_step
        Called after each request with the number done and the number of all.

    Returns
    -------
    The object of ``--json`` (see `optimizer.replay.summary`), and the recording.

    Raises
    ------
    InvalidInput
        Naming the policy, the weights or the part of the recording that is refused.
    """
    if policy not in POLICY_NAMES:
        raise UnknownName("policy", policy, f"one of {', '.join(POLICY_NAMES)}")
    parsed = parse_weights(weights)
    recorded = load_recording(data)
    objective = recorded.objective(parsed)
    total = len(recorded.prompts)
    with threadpool_limits(1):
        encoder, features = encode(recorded)
        chosen = make_policy(
            PolicySettings.model_validate({"name": policy}),
            [Arm(model) for model in recorded.models],
            encoder.size,
            objective,
            static_arm=recorded.models.index(dearest_model(recorded)),
            schema_id=encoder.schema_id,
        )
        result = replay(recorded, features, chosen, seed, lambda step: on_step(step + 1, total))
    return summary(data, recorded, chosen, seed, result), recorded


def encode(recorded: RecordedOutcomes) -> tuple[FeatureEncoder, Matrix]:
    """The encoder for a recording's tasks, and the features of its requests, shape (n, d)."""
    embedder = Embedder()
    encoder = FeatureEncoder(sorted(set(recorded.tasks)), embedder.size)
    embeddings = embedder.embed_many(recorded.prompts)
    rows = [
        encoder.encode(Context(prompt=prompt, task=task), embedding, now_s=0.0)
        for prompt, task, embedding in zip(
            recorded.prompts, recorded.tasks, embeddings, strict=True
        )
    ]
    return encoder, pd.DataFrame(rows).to_numpy()


def dearest_model(recorded: RecordedOutcomes) -> str:
    """The model with the highest mean cost."""
    return recorded.models[int(recorded.cost_usd.mean(axis=0).argmax())]


def comparison_table(ours: str, result: dict[str, Any], title: str) -> Table:
    """Our means beside those of the fixed rules.

    Parameters
    ----------
    ours
        What our line is called.
    result
        With ``quality``, ``cost_usd``, ``reward``, ``last_third`` and ``baselines``, as
        `optimizer.replay.summary` gives them.
    title
        Above the table.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("quality", "USD per 1,000 requests", "reward"):
        table.add_column(column, justify="right")

    def line(name: str, means: dict[str, Any], style: str | None = None) -> None:
        table.add_row(
            name,
            f"{means['quality']:.4f}",
            f"{1000 * means['cost_usd']:.3f}",
            f"{means['reward']:.4f}",
            style=style,
        )

    line(ours, result, "bold")
    if "without_control" in result:
        share = f"{100 * result['control_share']:.0f} %"
        line(f"  without the uniform control ({share})", result["without_control"])
    line("  its last third", result["last_third"])
    rules = result["baselines"]
    for name, label in _RULES.items():
        model = rules[name].get("model")
        line(f"{label} ({model})" if model else label, rules[name])
    mix = rules["equal_cost_mix"]["quality"]
    table.add_row("best mix of two models at our cost", f"{mix:.4f}", "", "")
    return table
