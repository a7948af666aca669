"""
How vLLM's own request models read bodies; runs in vLLM's environment.

    .engine/bin/python tests/vllm_reads.py < bodies.json > read.json

Each line of the input is [path, body]; of the output what vLLM makes of it, or null where it
refuses it: [max_tokens, min_tokens, n, ignore_eos].
"""

import json
import sys

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

MODELS = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
}


def main() -> None:
    read = [as_vllm_reads(path, body) for path, body in json.load(sys.stdin)]
    sys.stdout.write(f"READ {json.dumps(read)}\n")


def as_vllm_reads(path: str, body: dict) -> list | None:
    try:
        request = MODELS[path].model_validate(body)
    except (ValidationError, ValueError):
        return None
    if path == "/v1/chat/completions":
        limit = request.max_completion_tokens
        limit = request.max_tokens if limit is None else limit
    else:
        limit = request.max_output_tokens if path == "/v1/responses" else request.max_tokens
    declared = type(request).model_fields  # others are kept as they came, and do nothing
    n = request.n if "n" in declared else 1
    least = request.min_tokens if "min_tokens" in declared else 0
    return [limit, least, n, request.ignore_eos]


if __name__ == "__main__":
    main()
