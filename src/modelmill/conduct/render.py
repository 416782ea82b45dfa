"""Show the Jobs a run would be on a cluster, without a cluster and without its sources.

Pure.  Sources are not looked at, so keys stand for unpinned ones: names and labels have
their shape, and every other line is what the conductor creates.
"""

from modelmill.conduct.backend import Order
from modelmill.conduct.jobs import Manifest, Release, stage_job
from modelmill.spec.canonical import sha256_of
from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.names import ENVIRONMENT_OF, report_key
from modelmill.spec.plan import Plan, report_digest
from modelmill.spec.profile import Profile, check_cluster, cluster_facts
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin

NO_UID = "00000000-0000-0000-0000-000000000000"


def rendered_jobs(run: RunSpec, profile: Profile, name: str, namespace: str) -> dict[str, Manifest]:
    """Render the first attempt of every stage, by stage, in the order of the plan.

    Args:
        run: what is asked for.
        profile: the cluster.
        name: of the run.
        namespace: it would run in.

    Raises:
        SpecError: the profile lacks what a cluster needs, or a patch does not fit.
    """
    release = Release(
        run=name,
        namespace=namespace,
        revision="1",
        anchor=anchor_name(name),
        anchor_uid=NO_UID,
        profile=check_cluster(profile, "profile"),
    )
    pins = {source: Pin(address=source, digest="") for source in sources_of(run)}
    plan = make_plan(run, cluster_facts(profile), pins)
    return {order.stage: stage_job(order, release) for order in _orders(plan, name)}


def anchor_name(run: str) -> str:
    """Name the ConfigMap that owns a run's Jobs, as the chart does."""
    return f"{run}-anchor"


def _orders(plan: Plan, name: str) -> tuple[Order, ...]:
    sha256 = sha256_of(plan.model_dump(mode="json"))
    stages = tuple(
        Order(stage.name, stage.key, stage.environment, 1, sha256) for stage in plan.stages
    )
    key = report_key(name, report_digest(sha256, {}))
    return (*stages, Order("report", key, ENVIRONMENT_OF["report"], 1, sha256))
