"""Say how llama.cpp divides texts, and how it goes on with them when it takes the best token.

    python llama_cpp.py FILE.gguf TEXT...

A process of its own: what llama.cpp does not like ends it.  One thread, and a cache in float32.
"""

import json
import sys
import urllib.request
from typing import Any

import xllamacpp

CONTEXT = 64
TOKENS = 16


def serve(path: str) -> xllamacpp.Server:
    """Start llama.cpp's own server, on a free port of this machine."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = CONTEXT, 1, 1
    params.warmup = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def ask(server: xllamacpp.Server, what: str, **question: object) -> dict[str, Any]:
    """Ask its own interface: the one that is like OpenAI's joins tokens that are no letters."""
    request = urllib.request.Request(  # noqa: S310 - the server's own address
        f"{server.listening_address}/{what}",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        told: dict[str, Any] = json.load(answer)
    return told


def main(path: str, *texts: str) -> None:
    """Print a list with the ids of each text, and of the tokens behind it."""
    server = serve(path)
    told = []
    for text in texts:
        ids = ask(server, "tokenize", content=text, add_special=True)["tokens"]
        asked = {"temperature": 0, "ignore_eos": True, "return_tokens": True, "n_predict": TOKENS}
        told.append({"ids": ids, "next": ask(server, "completion", prompt=ids, **asked)["tokens"]})
    sys.stdout.write(f"\n{json.dumps(told)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
