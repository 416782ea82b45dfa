"""The other side of `vllm_engine`: the one module that imports vLLM.

python -m modelmill.models.vllm.process JOB DONE
"""

import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams

from modelmill.models.vllm.job import Done, Job, engine_arguments, sampling_arguments


def answer(job: Job) -> Done:
    """Answer all prompts at once; vLLM fills its batches itself."""
    engine = LLM(**engine_arguments(job))
    sampling = SamplingParams(**sampling_arguments(job))
    prompts = [{"prompt_token_ids": list(each)} for each in job.prompts]
    # The first answer compiles what the start has left.
    engine.generate(prompts[:1], sampling, use_tqdm=False)
    started = time.perf_counter()
    found = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    return Done(answers=tuple(tuple(each.outputs[0].token_ids) for each in found), seconds=seconds)


def main() -> None:
    """Read a job from one file and write what came out of it to another."""
    asked, told = map(Path, sys.argv[1:])
    done = answer(Job.model_validate_json(asked.read_bytes()))
    told.write_text(done.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
