"""Which paths engines read a request's priority on, however they are spelled."""

import re
from posixpath import normpath

_ODD_SPELLING = re.compile(r"//|/\.|/$|;|\s$")
_PATH_PARAMETERS = re.compile(r";[^/]*")  # RFC 3986, section 3.3; Java's servers take them out

# They generate nothing, and have `priority` in their bodies all the same: in vLLM 0.32
# (entrypoints/pooling) and SGLang 0.5 (its EmbeddingReqInput; OpenAI's EmbeddingRequest).
UNGENERATING = ("/embeddings", "/embed", "/pooling", "/classify", "/score", "/rerank", "/encode")
# SGLang's door for Vertex AI hands on what stands in `parameters`.
IN_PARAMETERS = ("/vertex_generate",)
# SGLang takes its own paths by either.
METHODS = ("POST", "PUT")


def plain(path: str) -> str:
    """
    The path as a server may take it: `/v1//completions/` is `/v1/completions`.

    So is one with a line's end behind it, to Starlette, and so to vLLM and SGLang: the `$` at the
    end of its routes matches before that.
    """
    if _ODD_SPELLING.search(path):
        return normpath(_PATH_PARAMETERS.sub("", path.rstrip()))
    return path


def reads_parameters(path: str) -> bool:
    """Whether an engine looks for a priority in the body's `parameters` there."""
    return plain(path).endswith(IN_PARAMETERS)
