"""What k8s/ gives a namespace is what the conductor needs, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct.backend import Order
from modelmill.conduct.jobs import Release, stage_job
from modelmill.spec.loading import parse_yaml
from modelmill.spec.names import CONDUCTOR_ACCOUNT, ENVIRONMENT_OF, KINDS, STAGE_ACCOUNT
from modelmill.spec.profile import Profile

K8S = Path(__file__).parents[2] / "k8s"


def documents(name: str) -> list[Any]:
    """Parse every document of a file."""
    parts = (K8S / name).read_text(encoding="utf-8").split("\n---\n")
    return [parse_yaml(part, name)[0] for part in parts]


def resources_of(kind: str) -> set[str]:
    """List what a stage of a kind asks for."""
    order = Order(kind, "ab" * 32, ENVIRONMENT_OF[kind], 1, "cd" * 32)  # type: ignore[index]
    job: Any = stage_job(order, Release("r", "n", "1", "a", "u", Profile()))
    return set(job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"])


def test_namespace_enforces_the_security_standard() -> None:
    """A pod that is not restricted is refused, logged and warned about."""
    [namespace] = documents("base/namespace.yaml")
    modes = {f"pod-security.kubernetes.io/{mode}" for mode in ("enforce", "audit", "warn")}
    assert namespace["metadata"]["labels"] == dict.fromkeys(modes, "restricted")


def test_conductor_may_do_exactly_what_is_listed() -> None:
    """No Secret, no exec, no object of another kind."""
    role, binding = documents("base/conductor-role.yaml")
    allowed = {
        f"{group}/{resource}": set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    look = {"get", "list", "watch"}
    assert allowed == {
        "batch/jobs": look | {"create", "delete", "patch"},
        "/pods": look | {"delete"},
        "/pods/log": {"get"},
        "/events": {"list", "create"},
        "/configmaps": {"get"},
        "/namespaces": {"get"},
        "/resourcequotas": look,
        "kueue.x-k8s.io/workloads": look,
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": CONDUCTOR_ACCOUNT}]


@pytest.mark.parametrize("name", ["base/conductor-role.yaml", "base/submitter-role.yaml"])
def test_nobody_may_read_secrets_or_enter_pods(name: str) -> None:
    """Who starts runs, and what runs them, reads no credentials from the API server."""
    rules = [rule for document in documents(name) for rule in document.get("rules", [])]
    resources = {each for rule in rules for each in rule["resources"]}
    assert not {"secrets", "pods/exec", "*"} & resources
    assert not {"*", "escalate", "impersonate"} & {each for rule in rules for each in rule["verbs"]}


def test_accounts_are_those_that_pods_name() -> None:
    """No token is mounted that a pod does not ask for."""
    accounts = documents("base/accounts.yaml")
    assert {each["metadata"]["name"] for each in accounts} == {CONDUCTOR_ACCOUNT, STAGE_ACCOUNT}
    assert {each["automountServiceAccountToken"] for each in accounts} == {False}


@pytest.mark.parametrize("kind", KINDS)
def test_queue_and_quota_cover_everything_a_stage_asks_for(kind: str) -> None:
    """Kueue admits nothing that asks for a resource its queue does not cover."""
    queue = next(each for each in documents("queues/queues.yaml") if each["kind"] == "ClusterQueue")
    [group] = queue["spec"]["resourceGroups"]
    covered = set(group["coveredResources"])
    assert covered == {each["name"] for each in group["flavors"][0]["resources"]}
    assert resources_of(kind) <= covered
    [quota] = documents("base/quota.yaml")
    assert {f"requests.{each}" for each in resources_of(kind)} <= set(quota["spec"]["hard"])


def test_local_queue_is_not_the_default_one() -> None:
    """A LocalQueue called `default` would take the conductor's Job too."""
    queues = documents("queues/queues.yaml")
    [local] = [each for each in queues if each["kind"] == "LocalQueue"]
    assert local["metadata"]["name"] != "default"


def reach_of(role: str) -> set[str]:
    """List the policies that let a role out."""
    found = set()
    for policy in documents("base/network-policies.yaml"):
        selector = policy["spec"]["podSelector"]
        roles = {selector.get("matchLabels", {}).get("modelmill/role")}
        for expression in selector.get("matchExpressions", []):
            roles |= set(expression["values"])
        if role in roles and policy["spec"].get("egress"):
            found.add(policy["metadata"]["name"].removeprefix("modelmill-"))
    return found


@pytest.mark.parametrize(
    ("role", "reach"),
    [
        ("conductor", {"names", "store", "api-server", "sources"}),
        ("fetch", {"names", "store", "sources"}),
        ("stage", {"names", "store"}),
        ("stranger", set()),
    ],
)
def test_role_reaches_what_it_needs(role: str, reach: set[str]) -> None:
    """A stage that runs model code reaches names and the store, and can tell nobody else."""
    assert reach_of(role) == reach


def test_nothing_is_reached_unless_it_is_named() -> None:
    """The first policy closes both directions for every pod, and none opens the way in."""
    policies = documents("base/network-policies.yaml")
    [nothing] = [each for each in policies if each["spec"]["podSelector"] == {}]
    assert nothing["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & nothing["spec"].keys()
    assert [each for each in policies if "ingress" in each["spec"]] == []


def test_way_out_is_no_way_in() -> None:
    """Every range that is all addresses leaves private and link-local ones out."""
    inside = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
    for policy in documents("base/network-policies.yaml"):
        for rule in policy["spec"].get("egress", []):
            blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            for block in blocks:
                is_narrow = not block["cidr"].endswith("/0")
                assert is_narrow or set(inside) <= set(block["except"])


@pytest.mark.parametrize("name", ["stage", "conductor"])
def test_artifacts_cannot_be_deleted_by_a_run(name: str) -> None:
    """A stage drops its own checkpoints; what is committed, nobody who runs code can delete."""
    policy = json.loads((K8S / f"iam/{name}.json").read_text(encoding="utf-8"))
    allowed = [
        statement["Resource"]
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow" and "s3:DeleteObject" in statement["Action"]
    ]
    assert [each for each in allowed if not each.endswith("/checkpoints/*")] == []
    assert any(
        statement["Effect"] == "Deny" and "s3:DeleteObject" in statement["Action"]
        for statement in policy["Statement"]
    )
