"""What a feature service has promised stays: whoever names it goes on finding its features."""

from __future__ import annotations

from collections.abc import Iterable

from feast import FeatureService, FeatureStore

from optimizer.errors import InvalidInput

__all__ = ["check_promises"]


def check_promises(store: FeatureStore, services: Iterable[FeatureService]) -> None:
    """Refuse definitions in which a registered service would lose a feature.

    Live policies and training sets name a service by its version, as ``decision_v1``. Adding to it
    changes nothing for them.

    Parameters
    ----------
    store
        Its registry is read.
    services
        As they are to be.

    Raises
    ------
    InvalidInput
        Naming the service, the features and the remedy.
    """
    to_be = {service.name: _promised(service) for service in services}
    for registered in store.list_feature_services():
        if registered.name not in to_be:
            continue  # applying definitions takes no service away
        lost = _promised(registered) - to_be[registered.name]
        if lost:
            raise InvalidInput(
                f"feature service {registered.name}",
                ", ".join(sorted(lost)),
                "these would be lost to all who use the service; leave them in it, and put what is "
                "to be without them into a service with a new version",
            )


def _promised(service: FeatureService) -> set[str]:
    return {
        f"{projection.name}:{field.name}"
        for projection in service.feature_view_projections
        for field in projection.features
    }
