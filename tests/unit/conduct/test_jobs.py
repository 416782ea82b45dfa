"""A stage's Job is what cluster, queue and security standard want, whatever is asked."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.conduct.backend import Order
from modelmill.conduct.jobs import Release, job_name, key_label, stage_job
from modelmill.conduct.render import NO_UID, rendered_jobs
from modelmill.spec.errors import Retry, SpecError, retry_for
from modelmill.spec.loading import parse_run
from modelmill.spec.names import ENV_ATTEMPT, ENVIRONMENT_OF, KINDS, kind_of
from modelmill.spec.profile import Profile
from modelmill.spec.quantity import whole_bytes
from modelmill.stages.entrypoint import read_environment
from tests.pod_security import pod_problems
from tests.unit.spec.strategies import profiles, runs

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LONGEST_GENERATED_NAME = 58
"""Kubernetes cuts a longer Job's name to make room for the suffix of its pods."""

CLUSTER: dict[str, Any] = {"images": {"registry": "r"}, "store": {"url": "s3://b/p"}}

stages = st.one_of(
    st.sampled_from(["fetch-model", "fetch-data", "fetch-test", "finetune", "merge", "report"]),
    st.builds(
        "{}-{}".format,
        st.sampled_from(["quantize", "infer"]),
        st.from_regex(r"[a-z][-a-z0-9]{0,10}[a-z0-9]", fullmatch=True),
    ),
)
run_names = st.from_regex(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?", fullmatch=True)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, str]:
    """Draw an order, and the run it is for."""
    run, stage, digest = draw(run_names), draw(stages), draw(digests)
    key = f"{run}.{digest}" if stage == "report" else digest
    number = draw(st.integers(1, 99_999))
    return Order(stage, key, ENVIRONMENT_OF[kind_of(stage)], number, draw(digests)), run


def rendered(order: Order, profile: Mapping[str, Any], run: str = "run") -> dict[str, Any]:
    """Render one Job of a profile written as a user would."""
    given = Profile.model_validate({**CLUSTER, **profile})
    job: dict[str, Any] = stage_job(order, Release(run, "space", "1-0a1b2c3d", "a", "uid", given))
    return job


def order_of(stage: str) -> Order:
    """Order a stage."""
    return Order(stage, "ab" * 32, ENVIRONMENT_OF[kind_of(stage)], 1, "cd" * 32)


def pod_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """Look at the pod of a Job."""
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def environment_of(job: Mapping[str, Any]) -> dict[str, str]:
    """Read the values a stage is told."""
    [container] = pod_of(job)["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


@given(orders(), profiles())
def test_every_job_is_one_that_a_cluster_takes(
    ordered: tuple[Order, str], profile: dict[str, Any]
) -> None:
    """Names fit, labels are labels, requests fit limits, and the pod is restricted."""
    order, run = ordered
    job = rendered(order, profile, run)
    assert len(job["metadata"]["name"]) <= LONGEST_GENERATED_NAME
    labels = {**job["metadata"]["labels"], **job["spec"]["template"]["metadata"]["labels"]}
    assert {key: value for key, value in labels.items() if len(value) > 63} == {}
    assert all(LABEL.fullmatch(value) for value in labels.values())
    assert job["metadata"]["annotations"]["modelmill/key"] == order.key
    assert pod_problems(pod_of(job)) == []


@given(orders(), orders())
def test_name_differs_where_stage_key_or_attempt_differ(
    one: tuple[Order, str], other: tuple[Order, str]
) -> None:
    """Creating a Job is the lock of an attempt, so two attempts never share a name."""
    first = (one[0].stage, key_label(one[0].key)[:8], one[0].number)
    second = (other[0].stage, key_label(other[0].key)[:8], other[0].number)
    assert (job_name(one[0], "run") == job_name(other[0], "run")) == (first == second)


@given(runs())
def test_render_shows_every_stage_and_the_report(data: dict[str, Any]) -> None:
    """What is shown is a Job per stage, each once, in the order of the plan."""
    run = parse_run(data, "run")
    jobs: Any = rendered_jobs(run, Profile.model_validate(CLUSTER), "run", "space")
    assert list(jobs) == [each["metadata"]["labels"]["modelmill/stage"] for each in jobs.values()]
    assert next(iter(jobs)) == "fetch-model"
    assert list(jobs)[-1] == "report"
    owners = {each["metadata"]["ownerReferences"][0]["uid"] for each in jobs.values()}
    assert owners == {NO_UID}


def test_job_is_left_to_kueue_and_to_its_conductor() -> None:
    """Nothing counts retries or decides about suspension but the one whose business it is."""
    job = rendered(order_of("merge"), {"queue": "team"})
    spec = job["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert not {"suspend", "managedBy", "ttlSecondsAfterFinished"} & spec.keys()
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    [disruption, interrupted] = spec["podFailurePolicy"]["rules"]
    assert disruption["action"] == interrupted["action"] == "Ignore"
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert interrupted["onExitCodes"]["values"] == [75]
    assert interrupted["onExitCodes"]["containerName"] == pod_of(job)["containers"][0]["name"]


def test_anchor_owns_a_job_without_controlling_it() -> None:
    """Kueue would take a controlled Job for a child of the release; OpenShift would refuse."""
    [owner] = rendered(order_of("merge"), {})["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("ConfigMap", "a", "uid")
    assert (owner["controller"], owner["blockOwnerDeletion"]) == (False, False)


def test_queue_of_a_kind_comes_before_that_of_the_profile() -> None:
    """CPU stages may wait in another line than those with a GPU; none is in none unasked."""
    profile = {"queue": "gpu", "stages": {"merge": {"queue": "cpu"}}}
    queue = "kueue.x-k8s.io/queue-name"
    assert rendered(order_of("merge"), profile)["metadata"]["labels"][queue] == "cpu"
    assert rendered(order_of("finetune"), profile)["metadata"]["labels"][queue] == "gpu"
    assert queue not in rendered(order_of("merge"), {})["metadata"]["labels"]


def test_only_kinds_that_compute_on_a_gpu_ask_for_one() -> None:
    """Fetch, merge and report never hold a GPU; with `accelerator: cpu` nobody does."""
    name = "nvidia.com/gpu"
    for kind in KINDS:
        limits = pod_of(rendered(order_of(kind), {}))["containers"][0]["resources"]["limits"]
        assert (limits.get(name) == "1") == (kind in {"finetune", "quantize", "infer"})
        cpu = pod_of(rendered(order_of(kind), {"accelerator": "cpu"}))
        assert name not in cpu["containers"][0]["resources"]["limits"]


def test_memory_limit_counts_shared_memory_and_disk_limit_counts_volumes() -> None:
    """What is written to a volume is charged to the pod, so its limits have room for it."""
    sizes = {"memory": "1Gi", "shm": "512Mi", "work": "5Gi", "tmp": "1Gi"}
    job = rendered(order_of("merge"), {"stages": {"merge": sizes}})
    limits = pod_of(job)["containers"][0]["resources"]["limits"]
    assert limits["memory"] == "1536Mi"
    assert whole_bytes(limits["ephemeral-storage"]) > whole_bytes("6Gi")
    assert environment_of(job)["MODELMILL_WORK_BYTES"] == str(5 * 2**30)


def test_claimed_volume_is_not_charged_to_the_node() -> None:
    """A PersistentVolumeClaim's file system knows its own size."""
    merge = {"work_volume": "ephemeral", "work_storage_class_name": "fast", "work": "500Gi"}
    job = rendered(order_of("merge"), {"stages": {"merge": merge}})
    claim = pod_of(job)["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == (
        "fast",
        "500Gi",
    )
    limits = pod_of(job)["containers"][0]["resources"]["limits"]
    assert whole_bytes(limits["ephemeral-storage"]) < whole_bytes("10Gi")
    assert "MODELMILL_WORK_BYTES" not in environment_of(job)


def test_replaced_pod_is_another_attempt() -> None:
    """The attempt's name is the pod's UID, which a replacement does not share."""
    [container] = pod_of(rendered(order_of("merge"), {}))["containers"]
    [attempt] = [each for each in container["env"] if each["name"] == "MODELMILL_ATTEMPT"]
    assert attempt["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}


def test_stage_understands_what_it_is_told() -> None:
    """What the Job sets is what the entrypoint reads, by the same names."""
    asked = read_environment({**environment_of(rendered(order_of("merge"), {})), ENV_ATTEMPT: "u"})
    assert (asked.store, asked.run, asked.stage) == ("s3://b/p", "run", "merge")
    assert (asked.plan_sha256, asked.attempt) == ("cd" * 32, "u")
    assert (str(asked.work), asked.work_limit_bytes) == ("/scratch", 100 * 2**30)
    assert str(asked.termination) == "/dev/termination-log"
    assert (asked.progress_file, asked.parent_pid) == (None, None)


def test_everything_a_library_writes_lands_in_a_volume() -> None:
    """The root is read-only: HOME, temporary files and caches are in volumes with a limit."""
    job = rendered(order_of("merge"), {})
    mounted = {each["mountPath"] for each in pod_of(job)["containers"][0]["volumeMounts"]}
    environment = environment_of(job)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MODELMILL_WORK"):
        assert any(f"{environment[name]}/".startswith(f"{path}/") for path in mounted)


def test_credentials_are_a_file_and_only_where_there_are_some() -> None:
    """A Secret is mounted; its content stands nowhere, and without one nothing looks for it."""
    store = {"url": "s3://b/p", "credentials_secret": "keys"}
    with_keys = rendered(order_of("merge"), {"store": store})
    path = environment_of(with_keys)["AWS_SHARED_CREDENTIALS_FILE"]
    mounts = {each["name"]: each for each in pod_of(with_keys)["containers"][0]["volumeMounts"]}
    assert path == f"{mounts['store']['mountPath']}/credentials"
    assert mounts["store"]["readOnly"] is True
    without = rendered(order_of("merge"), {})
    assert not [each for each in environment_of(without) if each.startswith("AWS_")]
    assert "store" not in {each["name"] for each in pod_of(without)["volumes"]}


@pytest.mark.parametrize("kind", KINDS)
def test_only_fetch_may_look_at_the_hub(kind: str) -> None:
    """A stage that runs model code cannot be made to load more of it."""
    is_offline = environment_of(rendered(order_of(kind), {}))["HF_HUB_OFFLINE"]
    assert is_offline == ("0" if kind.startswith("fetch-") else "1")


@pytest.mark.parametrize("kind", KINDS)
def test_token_of_the_hub_is_a_file_and_for_fetch_only(kind: str) -> None:
    """No other stage is told where the hub is, nor has the Secret mounted."""
    hub = {"endpoint_url": "https://hub.example.com", "token_secret": "reader"}
    job = rendered(order_of(kind), {"hub": hub})
    pod = pod_of(job)
    told = {"HF_ENDPOINT", "HF_TOKEN_PATH"} & environment_of(job).keys()
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["name"]: each for each in pod["containers"][0]["volumeMounts"]}
    if kind.startswith("fetch-"):
        assert told == {"HF_ENDPOINT", "HF_TOKEN_PATH"}
        assert environment_of(job)["HF_TOKEN_PATH"] == f"{mounts['hub']['mountPath']}/token"
        assert volumes["hub"]["secret"]["secretName"] == "reader"
    else:
        assert told == set()
        assert "hub" not in volumes
        assert "hub" not in mounts
    assert "HF_TOKEN" not in environment_of(job)


def test_image_is_named_by_digest_where_one_is_pinned() -> None:
    """A digest says what runs; a tag says what it is called."""
    images = {"registry": "r:5000/x", "tag": "7", "digests": {"merge": f"sha256:{'a' * 64}"}}
    profile = {"images": images}
    merge = pod_of(rendered(order_of("merge"), profile))["containers"][0]["image"]
    report = pod_of(rendered(order_of("report"), profile))["containers"][0]["image"]
    assert merge == f"r:5000/x/modelmill-merge@sha256:{'a' * 64}"
    assert report == "r:5000/x/modelmill-light:7"


def test_toleration_is_written_as_in_a_pod() -> None:
    """In Kubernetes' own spelling, and without what was left out, also after a round trip."""
    asked = {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}
    given = Profile.model_validate({**CLUSTER, "pods": {"tolerations": [asked, {"key": "b"}]}})
    again = rendered(order_of("merge"), given.model_dump(mode="json"))
    assert pod_of(again)["tolerations"][-2:] == [asked, {"key": "b"}]


def test_own_labels_and_annotations_come_along_and_ours_stay() -> None:
    """A site can mark pods and let them be moved, and cannot take the run's name away."""
    pods = {
        "labels": {"team": "a", "modelmill/run": "other"},
        "annotations": {"karpenter.sh/do-not-disrupt": "false"},
    }
    template = rendered(order_of("merge"), {"pods": pods})["spec"]["template"]["metadata"]
    assert (template["labels"]["team"], template["labels"]["modelmill/run"]) == ("a", "run")
    assert template["annotations"]["karpenter.sh/do-not-disrupt"] == "false"


def test_patch_changes_what_nothing_else_reaches() -> None:
    """The last resort adds to lists, replaces and removes."""
    patch = [
        {"op": "add", "path": "/spec/template/spec/hostUsers", "value": False},
        {"op": "add", "path": "/spec/template/spec/tolerations/0", "value": {"key": "x"}},
        {"op": "add", "path": "/spec/template/spec/tolerations/-", "value": {"key": "z"}},
        {"op": "remove", "path": "/spec/template/spec/tolerations/1"},
        {"op": "replace", "path": "/spec/template/spec/volumes/1/emptyDir", "value": {}},
        {"op": "add", "path": "/metadata/annotations/a~1b", "value": "c"},
    ]
    job = rendered(order_of("merge"), {"stages": {"merge": {"patch": patch}}})
    pod = pod_of(job)
    assert pod["hostUsers"] is False
    assert [each["key"] for each in pod["tolerations"]] == [
        "x",
        "node.kubernetes.io/unreachable",
        "z",
    ]
    assert pod["volumes"][1]["emptyDir"] == {}
    assert job["metadata"]["annotations"]["a/b"] == "c"


@pytest.mark.parametrize(
    ("op", "path"),
    [
        ("replace", "/spec/nothing"),
        ("remove", "/spec/template/spec/volumes/9"),
        ("remove", "/spec/template/spec/volumes/-"),
        ("add", "/spec/template/spec/volumes/x"),
        ("add", "/spec/backoffLimit/x"),
    ],
)
def test_patch_that_leads_nowhere_is_refused(op: str, path: str) -> None:
    """A patch that silently did nothing would be believed to have done something."""
    patch = {"merge": {"patch": [{"op": op, "path": path, "value": 1}]}}
    with pytest.raises(SpecError, match="is not in the Job"):
        rendered(order_of("merge"), {"stages": patch})


@pytest.mark.parametrize("path", ["/metadata/name", "/metadata/ownerReferences/0", "", "/"])
def test_patch_of_what_identifies_a_job_is_refused(path: str) -> None:
    """A conductor finds its Jobs again by name, labels and owner."""
    with pytest.raises(ValueError, match="pattern"):
        Profile.model_validate({"stages": {"merge": {"patch": [{"op": "remove", "path": path}]}}})


def test_profile_names_the_image_that_answers() -> None:
    """All models of a run are answered in one image, and no other stage changes its own."""
    profile = {"images": {"registry": "r", "tag": "7", "infer": "infer-vllm"}}
    named = [
        pod_of(rendered(order_of(stage), each))["containers"][0]["image"]
        for stage in ("infer-base", "quantize-gptq-4")
        for each in (profile, {"images": {**profile["images"], "infer": "infer"}})
    ]
    quantize = "r/modelmill-quantize:7"
    assert named == ["r/modelmill-infer-vllm:7", "r/modelmill-infer:7", quantize, quantize]


def test_profile_without_images_or_store_renders_nothing() -> None:
    """What a cluster cannot do without is named, all of it at once."""
    run = parse_run(
        {
            "model": {"source": "m"},
            "data": {"test": "t", "template": {"prompt": "{a}", "completion": "{b}"}},
        },
        "run",
    )
    with pytest.raises(SpecError) as caught:
        rendered_jobs(run, Profile(), "run", "space")
    assert [each.key for each in caught.value.problems] == ["images.registry", "store.url"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hostNetwork": True}, "hostNetwork is on"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v is a hostPath"),
        ({"volumes": [{"name": "v", "emptyDir": {}}]}, "volume v has no limit"),
        ({"securityContext": {}}, "stage may run as root"),
        ({"securityContext": {"runAsNonRoot": True}}, "stage has no seccomp profile"),
        ({"automountServiceAccountToken": True}, "only the conductor has a token"),
        ({"enableServiceLinks": True}, "addresses of services"),
    ],
)
def test_check_of_pods_finds_a_wrong_pod(change: dict[str, Any], said: str) -> None:
    """The check that every rendered pod passes can fail."""
    pod = {**pod_of(rendered(order_of("merge"), {})), **change}
    assert any(said in each for each in pod_problems(pod))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"securityContext": {}}, "may escalate"),
        ({"securityContext": {"runAsUser": 1000}}, "names a user"),
        ({"securityContext": {"privileged": True}}, "is privileged"),
        ({"securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}, "keeps capabilities"),
        ({"securityContext": {}}, "may write to its image"),
        ({"resources": {}}, "does not say how much memory"),
        ({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}}}, "more cpu than"),
        ({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {}}}]}, "secret in its environment"),
        ({"ports": [{"hostPort": 80}]}, "port of the node"),
    ],
)
def test_check_of_pods_finds_a_wrong_container(change: dict[str, Any], said: str) -> None:
    """The check that every rendered pod passes can fail in its container too."""
    pod = pod_of(rendered(order_of("merge"), {}))
    pod["containers"] = [{**pod["containers"][0], **change}]
    assert any(said in each for each in pod_problems(pod))


def shape(order: Order, profile: Mapping[str, Any], revision: str = "1-0a1b2c3d") -> str:
    """Read the shape of a Job."""
    given = Profile.model_validate({**CLUSTER, **profile})
    job: Any = stage_job(order, Release("run", "space", revision, "a", "uid", given))
    found: str = job["metadata"]["annotations"]["modelmill/shape"]
    return found


def test_shape_is_the_profiles_and_not_the_attempts() -> None:
    """An upgrade that changes nothing leaves what waits where it waits."""
    order = order_of("merge")
    other = replace(order, number=4, plan_sha256="ef" * 32, halvings=1)
    assert shape(order, {}) == shape(other, {}) == shape(order, {}, revision="7-aaaaaaaa")
    assert shape(order, {"max_parallel": 3}) == shape(order, {})
    assert shape(order, {"stages": {"merge": {"memory": "9Gi"}}}) != shape(order, {})
    assert shape(order, {"queue": "other"}) != shape(order, {})


def test_halvings_are_told_where_there_are_some() -> None:
    """A first attempt has no word about it, so that examples stay readable."""
    order = order_of("finetune")
    assert "MODELMILL_HALVINGS" not in environment_of(rendered(order, {}))
    told = environment_of(rendered(replace(order, halvings=2), {}))
    assert told["MODELMILL_HALVINGS"] == "2"
    assert read_environment({**told, ENV_ATTEMPT: "x"}).halvings == 2


def test_shards_are_the_pods_of_one_indexed_job() -> None:
    """Each is told which it is; one that fails is replaced alone, evictions as free as ever."""
    profile = {"stages": {"infer": {"shards": 4}}, "max_attempts": 3}
    job, alone = rendered(order_of("infer-base"), profile), rendered(order_of("infer-base"), {})
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (4, 4, "Indexed")
    assert spec["backoffLimitPerIndex"] == 2
    assert "backoffLimit" not in spec
    assert spec["podReplacementPolicy"] == alone["spec"]["podReplacementPolicy"]
    [container] = pod_of(job)["containers"]
    told = {each["name"]: each for each in container["env"]}
    assert told["MODELMILL_SHARDS"]["value"] == "4"
    path = told["MODELMILL_SHARD"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert not {"MODELMILL_SHARD", "MODELMILL_SHARDS"} & environment_of(alone).keys()
    assert alone["spec"]["backoffLimit"] == 0


def test_shard_that_can_never_succeed_ends_the_job() -> None:
    """Kubernetes repeats what the conductor would, whether or not there is one."""
    job = rendered(order_of("infer-base"), {"stages": {"infer": {"shards": 4}}})
    alone = rendered(order_of("infer-base"), {})
    *free, fatal = job["spec"]["podFailurePolicy"]["rules"]
    assert free == alone["spec"]["podFailurePolicy"]["rules"]
    codes = fatal["onExitCodes"]
    assert (fatal["action"], codes["operator"]) == ("FailJob", "NotIn")
    assert codes["containerName"] == pod_of(job)["containers"][0]["name"]
    # The API server wants them in order.
    assert codes["values"] == sorted(codes["values"])
    for code in range(1, 256):
        assert (code in codes["values"]) is (retry_for(code) is not Retry.NEVER)
    assert {64, 65, 66, 70, 76, 77, 78, 1}.isdisjoint(codes["values"])
    assert {71, 74, 75, 137, 143} <= set(codes["values"])


def test_other_kinds_have_no_shards() -> None:
    """Training by several pods would be another thing, and is refused where it is asked for."""
    with pytest.raises(ValueError, match=r"stages\.finetune\.shards: only infer"):
        rendered(order_of("finetune"), {"stages": {"finetune": {"shards": 2}}})
    job = rendered(order_of("finetune"), {"stages": {"infer": {"shards": 2}}})
    assert job["spec"]["completions"] == 1


def test_gpus_of_a_finetune_are_those_of_one_pod() -> None:
    """The stage sees how many there are, so nothing else of the Job differs."""
    order = order_of("finetune")
    one, two = (rendered(order, {"stages": {"finetune": {"gpu": gpus}}}) for gpus in (1, 2))
    assert two["spec"]["completions"] == two["spec"]["parallelism"] == 1
    resources = pod_of(two)["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "2"
    assert environment_of(two) == environment_of(one)
    assert "MODELMILL_RANKS" not in environment_of(two)
    for part in ("limits", "requests"):
        resources[part]["nvidia.com/gpu"] = "1"
    two["metadata"]["annotations"] = one["metadata"]["annotations"]  # the shape
    assert two == one


def test_ranks_are_told_where_they_are_asked_for() -> None:
    """Without a GPU nobody could count them."""
    profile = {"accelerator": "cpu", "stages": {"finetune": {"ranks": 2}}}
    told = environment_of(rendered(order_of("finetune"), profile))
    assert read_environment({**told, ENV_ATTEMPT: "x"}).ranks == 2
    assert "MODELMILL_RANKS" not in environment_of(rendered(order_of("merge"), profile))
    with pytest.raises(ValueError, match=r"stages\.merge\.ranks: only finetune has several"):
        rendered(order_of("merge"), {"stages": {"merge": {"ranks": 2}}})
    assert read_environment({**told, ENV_ATTEMPT: "x"}).fsdp == "auto"
    profile["stages"] = {"finetune": {"ranks": 2, "fsdp": "always"}}
    told = environment_of(rendered(order_of("finetune"), profile))
    assert read_environment({**told, ENV_ATTEMPT: "x"}).fsdp == "always"
    with pytest.raises(SpecError, match="MODELMILL_FSDP"):
        read_environment({**told, "MODELMILL_FSDP": "perhaps"})
    with pytest.raises(ValueError, match=r"stages\.merge\.fsdp: only finetune has several"):
        rendered(order_of("merge"), {"stages": {"merge": {"fsdp": "never"}}})
    with pytest.raises(ValueError, match=r"ranks: each needs a GPU, and gpu is 1"):
        rendered(order_of("finetune"), {"stages": {"finetune": {"ranks": 2}}})
