"""One release is an anchor, a configuration and a conductor, by Helm's own engine."""

from typing import Any

import helm_python
import pytest

from modelmill.conduct.backend import Order
from modelmill.conduct.jobs import Release, stage_job
from modelmill.conduct.render import anchor_name
from modelmill.spec.profile import Profile
from tests.pod_security import pod_problems

from .conftest import CHART, EVERYTHING, RUN, Object, Render, one, values

ON = {"create": True}


def pod_of(job: Object) -> Object:
    """Look at the pod of a Job."""
    pod: Object = job["spec"]["template"]["spec"]
    return pod


def environment_of(job: Object) -> dict[str, str]:
    """Read what a container is told."""
    [container] = pod_of(job)["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def stage_of(profile: dict[str, Any]) -> Object:
    """Render a stage of the same release, as the conductor does."""
    release = Release("my-run", "team", "1", "a", "uid", Profile.model_validate(profile))
    return stage_job(Order("fetch-data", "ab" * 32, "light", 1, "cd" * 32), release)


def test_release_is_an_anchor_a_configuration_and_a_conductor(render: Render) -> None:
    """Nothing else is installed, above all no stage."""
    objects = render(values())
    assert sorted(
        (each["kind"], each["metadata"]["name"].split("-r1-")[0]) for each in objects
    ) == [
        ("ConfigMap", "my-run-anchor"),
        ("ConfigMap", "my-run-config"),
        ("Job", "my-run-conductor"),
    ]
    assert {each["metadata"]["namespace"] for each in objects} == {"team"}


def test_anchor_keeps_its_name_and_names_the_live_revision(render: Render) -> None:
    """An upgrade changes the annotation, and the objects of a revision are called after it."""
    first, second = render(values()), render(values(), revision=2)
    anchors = [one(each, "ConfigMap", "anchor") for each in (first, second)]
    assert {each["metadata"]["name"] for each in anchors} == {anchor_name("my-run")}
    for objects, anchor in zip((first, second), anchors, strict=True):
        revision = anchor["metadata"]["annotations"]["modelmill/revision"]
        conductor = one(objects, "Job")
        assert conductor["metadata"]["name"] == f"my-run-conductor-r{revision}"
        assert environment_of(conductor)["MODELMILL_REVISION"] == revision
        assert (
            environment_of(conductor)["MODELMILL_CONDUCTOR_JOB"] == (conductor["metadata"]["name"])
        )
    assert one(first, "Job")["metadata"]["name"] != one(second, "Job")["metadata"]["name"]


@pytest.mark.parametrize(
    "changed", [{"profile": {"max_parallel": 2}}, {"rbac": ON}, {"run": {**RUN, "seed": 1}}]
)
def test_changed_values_give_another_conductor_in_the_same_revision(
    render: Render, changed: dict[str, Any]
) -> None:
    """Who renders without installing never raises the revision; a Job's template cannot change."""
    other = values(changed.pop("profile", None), **changed)
    names = {one(render(each), "Job")["metadata"]["name"] for each in (values(), other)}
    assert len(names) == 2
    assert one(render(values()), "Job") == one(render(values()), "Job")


def test_conductor_may_be_lost_at_any_time(render: Render) -> None:
    """Its Job starts it again, at once and for ever, until it says that the run has ended."""
    spec = one(render(values()), "Job")["spec"]
    assert spec["backoffLimit"] >= 1000
    assert spec["podReplacementPolicy"] == "TerminatingOrFailed"
    assert not {"podFailurePolicy", "ttlSecondsAfterFinished", "activeDeadlineSeconds"} & set(spec)
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 10


@pytest.mark.parametrize("profile", [{}, EVERYTHING], ids=["least", "everything"])
def test_conductor_passes_the_security_standard(render: Render, profile: dict[str, Any]) -> None:
    """Its pod is as restricted as those it starts."""
    assert pod_problems(pod_of(one(render(values(profile)), "Job"))) == []


def test_conductor_and_stage_see_one_place_alike(render: Render) -> None:
    """What the profile says about every pod is said in the chart and in the code."""
    conductor, stage = one(render(values(EVERYTHING)), "Job"), stage_of(EVERYTHING)
    mine, theirs = pod_of(conductor), pod_of(stage)
    for field in ("securityContext", "imagePullSecrets", "runtimeClassName", "enableServiceLinks"):
        assert mine[field] == theirs[field]
    assert mine["containers"][0]["image"] == theirs["containers"][0]["image"]
    for field in ("securityContext", "imagePullPolicy", "terminationMessagePath"):
        assert mine["containers"][0][field] == theirs["containers"][0][field]
    for name in ("store", "hub", "ca"):
        for field, key in (("volumes", "volumes"), ("volumeMounts", "containers")):
            places = [(each if key == field else each[key][0])[field] for each in (mine, theirs)]
            found = [next(x for x in place if x["name"] == name) for place in places]
            assert found[0] == found[1]
    shared = {
        name: value
        for name, value in environment_of(stage).items()
        if name.startswith(("AWS_", "HTTP", "SSL", "REQUESTS", "USER", "LOGNAME", "HOME", "TMP"))
        or name in ("HF_ENDPOINT", "HF_TOKEN_PATH", "HF_HUB_OFFLINE")
    }
    assert len(shared) >= 13
    assert shared.items() <= environment_of(conductor).items()
    assert mine["tolerations"][:3] == theirs["tolerations"][:3]


def test_conductor_alone_knows_whom_to_tell_of_the_end(render: Render) -> None:
    """From files of a Secret that need not be there: a run does not wait for it."""
    conductor, stage = one(render(values(EVERYTHING)), "Job"), stage_of(EVERYTHING)
    folder = environment_of(conductor)["MODELMILL_WEBHOOK_FOLDER"]
    pod = pod_of(conductor)
    [mount] = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "webhook"]
    [volume] = [each for each in pod["volumes"] if each["name"] == "webhook"]
    assert (mount["mountPath"], mount["readOnly"]) == (folder, True)
    keys = ("url", "secret")
    assert volume["secret"] == {
        "secretName": "hook",
        "optional": True,
        "items": [{"key": key, "path": key} for key in keys],
    }
    assert not any("WEBHOOK" in name for name in environment_of(stage))


def test_conductor_has_its_own_place(render: Render) -> None:
    """It goes to cheap nodes and waits in its own line, while what all pods share stays."""
    conductor = one(render(values(EVERYTHING)), "Job")
    pod = pod_of(conductor)
    assert pod["nodeSelector"] == {"zone": "a", "pool": "cpu"}
    assert [each["key"] for each in pod["tolerations"]][2:] == ["a", "b"]
    assert pod["priorityClassName"] == "high"
    assert conductor["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "conductors"
    labels = conductor["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels["modelmill/run"]) == ("a", "my-run")
    annotations = conductor["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"example.com/note": 'a "b": c'}
    assert environment_of(conductor)["NO_PROXY"] == "s3.example.com,$(KUBERNETES_SERVICE_HOST)"


def test_conductor_waits_in_no_line_unasked(render: Render) -> None:
    """A queue for stages is none for the conductor, which would hold what they wait for."""
    conductor = one(render(values({"queue": "team"})), "Job")
    assert "kueue.x-k8s.io/queue-name" not in conductor["metadata"]["labels"]


def test_longest_run_name_fits_everywhere(render: Render) -> None:
    """Twenty characters leave room for revision and digest in the name of a pod."""
    objects = render(values(), name="r" * 20, revision=9999)
    assert max(len(each["metadata"]["name"]) for each in objects) <= 58


def test_playground_gets_accounts_and_the_same_role(render: Render) -> None:
    """`rbac.create` gives the conductor what the namespace's Role gives it, no more."""
    from modelmill.spec.loading import parse_yaml

    objects = render(values(rbac=ON))
    text = (CHART.parents[1] / "k8s/base/conductor-role.yaml").read_text(encoding="utf-8")
    role, binding = (parse_yaml(part, "role")[0] for part in text.split("\n---\n"))
    assert isinstance(role, dict)
    assert isinstance(binding, dict)
    assert one(objects, "Role")["rules"] == role["rules"]
    assert one(objects, "RoleBinding")["roleRef"] == binding["roleRef"]
    accounts = [each for each in objects if each["kind"] == "ServiceAccount"]
    names = {each["metadata"]["name"] for each in accounts}
    assert names == {"modelmill-conductor", "modelmill-stage"}
    assert {each["automountServiceAccountToken"] for each in accounts} == {False}


def test_notes_name_what_was_installed(chart: helm_python.Chart) -> None:
    """Every command in them can be pasted."""
    texts = chart.render(values(), name="my-run", namespace="team", revision=1)
    notes = texts["modelmill/templates/NOTES.txt"]
    conductor = one([_parsed(texts["modelmill/templates/conductor.yaml"])], "Job")
    assert f"job/{conductor['metadata']['name']}" in notes
    # `kubectl wait` knows one condition, and a Job that fails never has `Complete`.
    assert "modelmill wait my-run --store s3://models/team\n" in notes
    assert "condition=" not in notes
    for words in ("modelmill status my-run", "helm -n team uninstall my-run", "s3://models/team"):
        assert words in notes


def test_chart_has_nothing_to_complain_about() -> None:
    """Helm's own lint finds neither error nor warning."""
    report = helm_python.lint(CHART, values())
    assert [each for each in report["messages"] if each["severity"] >= 2] == []
    assert report["errors"] == []


def _parsed(text: str) -> Any:
    from modelmill.spec.loading import parse_yaml

    return parse_yaml(text, "rendered")[0]
