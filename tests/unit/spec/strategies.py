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
            optional={"group_size": st.sampled_from(["auto", 32, 64, 128]), "sym": st.booleans()},
        ),
        st.fixed_dictionaries({"method": st.just("bitsandbytes")}),
    ),
    max_size=3,
    unique_by=lambda spec: (spec["method"], spec.get("bits")),
)
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
        "model": {"source": draw(st.sampled_from(["model", "s3://models/base"]))},
        "data": {
            "train": "train.jsonl",
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
    return run
