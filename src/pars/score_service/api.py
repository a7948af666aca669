"""
The scoring endpoints as a contract: what each asks for, and what it answers.

Field names and the choice of winner are those of PARS's own score service. msgspec's types read
what comes in, in time and memory linear in its size. The pydantic models make the OpenAPI page,
word the errors, and read what is JSON to Python only (lone surrogates, NaN).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class _AnyText:
    """Every Python string; `str` alone refuses the lone surrogates that JSON can carry."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.json_or_python_schema(
            json_schema=core_schema.str_schema(),
            python_schema=core_schema.custom_error_schema(
                core_schema.is_instance_schema(str),
                custom_error_type="string_type",
            ),
        )


Prompt = Annotated[str, _AnyText]
PromptField = Annotated[Prompt, Field(examples=["Name three primary colours."])]
OtherPromptField = Annotated[Prompt, Field(examples=["Write a short story about a lighthouse."])]
ScoreField = Annotated[
    float, Field(description="The higher, the longer the expected answer.", examples=[-1.25])
]
OtherScoreField = Annotated[float, Field(examples=[2.5])]
Winner = Annotated[
    str,
    Field(
        pattern="^prompt_[ab]$",
        description='"prompt_a" where score_a is the higher one, else "prompt_b".',
        examples=["prompt_b"],
    ),
]


class ScoreRequest(BaseModel):
    prompt: PromptField


class ScoreReply(BaseModel):
    prompt: PromptField
    score: ScoreField


class ScoreBatchRequest(BaseModel):
    prompts: list[PromptField]


class ScoreBatchReply(BaseModel):
    prompts: list[PromptField]
    scores: list[ScoreField]


class CompareRequest(BaseModel):
    prompt_a: PromptField
    prompt_b: OtherPromptField


class CompareReply(CompareRequest):
    score_a: ScoreField
    score_b: OtherScoreField
    winner: Winner


class CompareBatchRequest(BaseModel):
    pairs: list[CompareRequest]


class CompareBatchReply(BaseModel):
    results: list[CompareReply]


class ScoreWire(msgspec.Struct):
    prompt: str


class ScoreBatchWire(msgspec.Struct):
    prompts: list[str]


class CompareWire(msgspec.Struct):
    prompt_a: str
    prompt_b: str


class CompareBatchWire(msgspec.Struct):
    pairs: list[CompareWire]


class Problem(BaseModel):
    """The body of a 413, 500 or 503."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """
    One endpoint: its models, the prompts in a request, and the reply to their scores.

    Attributes:
        wire: As a request is read; its fields are those of `request`.
        list_field: The field that holds many; None: there is none.
    """

    path: str
    summary: str
    wire: type[msgspec.Struct]
    request: type[BaseModel]
    reply: type[BaseModel]
    prompts_of: Callable[[Any], list[str]]
    reply_to: Callable[[Any, list[float]], dict[str, Any]]
    list_field: str | None = None
    prompts_an_item: int = 1


def _comparison(pair: Any, score_a: float, score_b: float) -> dict[str, Any]:
    return {
        "prompt_a": pair.prompt_a,
        "prompt_b": pair.prompt_b,
        "score_a": score_a,
        "score_b": score_b,
        "winner": "prompt_a" if score_a > score_b else "prompt_b",
    }


OPERATIONS = (
    Operation(
        path="/score",
        summary="Score one prompt",
        wire=ScoreWire,
        request=ScoreRequest,
        reply=ScoreReply,
        prompts_of=lambda asked: [asked.prompt],
        reply_to=lambda asked, scores: {"prompt": asked.prompt, "score": scores[0]},
    ),
    Operation(
        path="/score_batch",
        summary="Score many prompts, in order",
        wire=ScoreBatchWire,
        request=ScoreBatchRequest,
        reply=ScoreBatchReply,
        prompts_of=lambda asked: asked.prompts,
        reply_to=lambda asked, scores: {"prompts": asked.prompts, "scores": scores},
        list_field="prompts",
    ),
    Operation(
        path="/compare",
        summary="Say which of two prompts expects the longer answer",
        wire=CompareWire,
        request=CompareRequest,
        reply=CompareReply,
        prompts_of=lambda asked: [asked.prompt_a, asked.prompt_b],
        reply_to=lambda asked, scores: _comparison(asked, *scores),
    ),
    Operation(
        path="/compare_batch",
        summary="Compare many pairs, in order",
        wire=CompareBatchWire,
        request=CompareBatchRequest,
        reply=CompareBatchReply,
        prompts_of=lambda asked: [
            p for pair in asked.pairs for p in (pair.prompt_a, pair.prompt_b)
        ],
        reply_to=lambda asked, scores: {
            "results": list(map(_comparison, asked.pairs, scores[::2], scores[1::2]))
        },
        list_field="pairs",
        prompts_an_item=2,
    ),
)
