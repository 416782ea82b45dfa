"""Hypothesis strategies for specs, as the plain data a user could have written."""

from typing import Any

from hypothesis import strategies as st

templates = st.sampled_from(
    [
        {"prompt": "{question}\n", "completion": "{answer}"},
        {"prompt": "### {context}\n{question}\n", "completion": "{answer}"},
    ]
)
quantizers = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"method": st.just("gptq"), "bits": st.sampled_from([2, 3, 4, 8])},
            optional={
                "group_size": st.sampled_from(["auto", 32, 64, 128]),
                "sym": st.booleans(),
                "calibration": st.sampled_from(
                    [{"tokens": 512}, {"text": "c4.txt"}, {"text": "c4.txt", "text_share": 0.25}]
                ),
            },
        ),
        st.fixed_dictionaries(
            {"method": st.just("autoround"), "bits": st.sampled_from([2, 3, 4])},
            optional={"iters": st.sampled_from([1, 1000])},
        ),
        st.fixed_dictionaries(
            {"method": st.just("rtn"), "bits": st.sampled_from([2, 3, 4, 8])},
            optional={"sym": st.booleans()},
        ),
        st.fixed_dictionaries(
            {"method": st.just("bitsandbytes"), "type": st.sampled_from(["nf4", "fp4", "int8"])}
        ),
        st.just({"method": "bitnet"}),
    ),
    max_size=3,
    unique_by=lambda spec: (spec["method"], spec.get("bits"), spec.get("type")),
)
MIXED = [
    {"source": "train.jsonl", "weight": 2},
    {"source": "hf:datasets/org/rows/data/*.parquet", "weight": 0.5},
]
finetunes = st.fixed_dictionaries(
    {},
    optional={
        "r": st.integers(1, 64),
        "learning_rate": st.sampled_from([1e-5, 2e-4, 0.001]),
        "num_train_epochs": st.sampled_from([1, 2.5, 3.0]),
        "batch_size": st.sampled_from([8, 16]),
        "micro_batch_size": st.sampled_from(["auto", 2, 4]),
        "load_in": st.sampled_from([None, "nf4"]),
        "target_modules": st.sampled_from(["all-linear", ["q_proj", "v_proj"]]),
    },
)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a run that is right."""
    run: dict[str, Any] = {
        "model": {"source": draw(st.sampled_from(["model", "s3://models/base", "hf:org/base@v1"]))},
        "data": {
            "train": draw(st.sampled_from(["train.jsonl", MIXED])),
            "test": "test.jsonl",
            "template": draw(templates),
            "eval": draw(st.sampled_from([0.05, 0.5, "eval.jsonl", None])),
        },
        "quantize": draw(quantizers),
        "seed": draw(st.integers(0, 3)),
    }
    if draw(st.booleans()):
        run["finetune"] = draw(finetunes)
    if draw(st.booleans()):
        run["infer"] = {"max_new_tokens": draw(st.integers(1, 64))}
    if draw(st.booleans()):
        settings = draw(st.sampled_from([{}, {"least": 0.5, "words": [1, "a"]}, {"n": 3}]))
        run.setdefault("infer", {})["metrics"] = {"plugins": {"word_overlap": settings}}
    if draw(st.booleans()):
        fields = draw(st.sampled_from(["level", ["level"], ["level", "topic"], None]))
        run["report"] = {"slice": fields}
    return run


sizes = st.builds("{}{}".format, st.integers(1, 900), st.sampled_from(["Mi", "Gi"]))
names = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
labels = st.dictionaries(st.sampled_from(["team", "example.com/team"]), names, max_size=2)
places = {
    "node_selector": labels,
    "labels": labels,
    "annotations": st.dictionaries(names, st.text("aé字 :'\"{}#\n", max_size=20), max_size=2),
    "priority_class_name": names,
    "runtime_class_name": names,
    "tolerations": st.lists(
        st.sampled_from(
            [
                {"operator": "Exists"},
                {"key": "a", "value": "b", "effect": "NoSchedule"},
                {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9},
            ]
        ),
        max_size=2,
    ),
}
stage_pods = st.fixed_dictionaries(
    {},
    optional={
        **places,
        "cpu": st.one_of(st.integers(1, 64), st.sampled_from(["500m", "2.5"])),
        **dict.fromkeys(("memory", "work", "tmp", "shm"), sizes),
        "work_volume": st.sampled_from(["emptyDir", "ephemeral"]),
        "work_storage_class_name": names,
        "termination_grace_period_seconds": st.integers(10, 600),
        "queue": names,
    },
)


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a profile of a cluster that is right, with anything from nothing to everything."""
    kinds = st.sampled_from(["fetch-model", "finetune", "merge", "quantize", "infer", "report"])
    profile: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "accelerator": st.sampled_from(["auto", "cpu", "cuda"]),
                "queue": names,
                "gpu_resource_name": st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]),
                "pods": st.fixed_dictionaries({}, optional={**places, "fs_group": st.just(1000)}),
                "conductor": st.fixed_dictionaries({}, optional={**places, "queue": names}),
                "stages": st.dictionaries(kinds, stage_pods, max_size=3),
                "ca_bundle": st.fixed_dictionaries({"config_map": names}),
                "webhook": st.fixed_dictionaries({}, optional={"secret": names}),
                "hub": st.fixed_dictionaries(
                    {}, optional={"endpoint_url": st.just("https://hub"), "token_secret": names}
                ),
                "proxy": st.fixed_dictionaries({"https_proxy": st.just("http://proxy:3128")}),
            },
        )
    )
    profile["images"] = draw(
        st.fixed_dictionaries(
            {"registry": st.sampled_from(["r.example.com", "localhost:5000/a/b"])},
            optional={
                "tag": st.sampled_from(["1", "v1.2"]),
                "pull_secrets": st.lists(names, max_size=2),
                "pull_policy": st.sampled_from(["Always", "IfNotPresent"]),
                "digests": st.just({"light": f"sha256:{'0' * 64}"}),
            },
        )
    )
    profile["store"] = draw(
        st.fixed_dictionaries(
            {"url": st.sampled_from(["s3://b", "s3://b/p/q"])},
            optional={"endpoint_url": st.just("http://s3:8333"), "credentials_secret": names},
        )
    )
    return profile
