"""The score service keeps its own OpenAPI document's word, whatever is sent."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pars.score_service.server import create_app

from serving import LengthScorer, serve_in_thread

PAGES = ("GET /", "GET /health", "GET /metrics")
ENDPOINTS = ("POST /score", "POST /score_batch", "POST /compare", "POST /compare_batch")
VALID, BROKEN = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
# A page takes nothing that could be broken.
TRIED = [*((it, VALID) for it in PAGES + ENDPOINTS), *((it, BROKEN) for it in ENDPOINTS)]


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    with serve_in_thread(create_app(LengthScorer())) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_operation_of_the_document_is_tried_below(document: Any):
    """None was added without being added here."""
    found = [it.ok() for it in document.get_all_operations()]

    assert sorted(f"{it.method.upper()} {it.path}" for it in found) == sorted(PAGES + ENDPOINTS)


@pytest.mark.parametrize(("operation", "mode"), TRIED, ids=lambda it: getattr(it, "value", it))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_answer_is_one_that_the_document_promises(
    document: Any, operation: str, mode: schemathesis.GenerationMode, data: st.DataObject
):
    """Valid bodies get the promised answer, broken ones a promised 4xx, and none a 5xx."""
    method, path = operation.split()
    case = data.draw(document[path][method].as_strategy(generation_mode=mode))

    case.call_and_validate()
