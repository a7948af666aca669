"""About how many tokens the parts of a body are, without a tokenizer; only feeds the cost."""

from typing import Any

from pars.request.conversation import text_of
from pars.request.fields import Unread

CHARS_PER_TOKEN = 4.0  # English text in the tokenizers of today's models
MEDIA_TOKENS = 1024.0  # an image, a sound or a file beside the text; encoders give 256 to 2,880
MEDIA = frozenset(("image", "audio", "video", "file", "document"))


def tokens_in(value: Any) -> float:
    """Tokens of a text, of token ids, or of a list of these; by its size of what was not built."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list) and value and isinstance(value[0], str | list | dict):
        return sum(map(_tokens_of_one, value))
    return _tokens_of_one(value)


def _tokens_of_one(value: Any) -> float:
    if isinstance(value, str):
        return len(value) / CHARS_PER_TOKEN
    if isinstance(value, Unread):
        return value.num_bytes / CHARS_PER_TOKEN if value.has_text else value.num_commas + 1.0
    return float(len(value)) if isinstance(value, list) else 0.0


def tokens_of_message(message: Any) -> float:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return len(content) / CHARS_PER_TOKEN
    if not isinstance(content, list):
        return 0.0
    num_media = sum(isinstance(part, dict) and _is_media(part) for part in content)
    return len(text_of(content)) / CHARS_PER_TOKEN + MEDIA_TOKENS * num_media


def _is_media(part: dict[str, Any]) -> bool:
    """Whether a part of a message is an image, a sound, a video or a file."""
    kind = part.get("type")
    return isinstance(kind, str) and kind.removeprefix("input_").split("_")[0] in MEDIA
