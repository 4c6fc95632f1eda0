"""Requests and answers of the completions API, in OpenAI's shape, with what this server adds to it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ds2ds.generation.config_checks import MOST_TOP_LOGPROBS

MAX_STOP = 16
"""Stop strings; OpenAI takes 4, some evaluations send more."""

MAX_STOP_TOKENS = 64


def _of_characters(text: str) -> str:
    """JSON can name halves of characters, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("text in Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_of_characters)]

# A wrong item ends the check of its list: a body may have a million of them.
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]
Strings = Annotated[list[Text], Field(fail_fast=True, min_length=1)]
TokenLists = Annotated[list[Tokens], Field(fail_fast=True, min_length=1)]
StopString = Annotated[Text, Field(min_length=1)]

_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "suffix": (None, ""),
}
"""Fields of OpenAI's that this server has nothing for, and the values at which they ask for nothing."""


class _Strict(BaseModel):
    """No conversions, no NaN; an unknown field is refused by name, and is the first to be told."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        if isinstance(values, dict):
            unknown = next((name for name in values if name not in cls.model_fields), None)
            if unknown is not None:
                raise _refused(unknown, f"unknown field {unknown!r}")
        return values


class StreamOptions(_Strict):
    include_usage: bool | None = Field(None, description="Send the usage in a chunk of its own, the last one.")


class CompletionRequest(_Strict):
    """null is as good as leaving a field out."""

    model: str = Field(description="The name of the model that is served.")
    prompt: Text | Strings | Tokens | TokenLists = Field(
        description="Text, token ids, or several of either. Empty text starts from the document separator."
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        description="Most tokens written in one document, the root or a linked one; default 16, or the server's limit.",
    )
    n: int | None = Field(None, ge=1, description="Texts for each prompt; default 1.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token; default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOP)] | None = Field(
        None, description=f"Up to {MAX_STOP} strings that end a document and are cut from its text."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="The same seed gives the same texts.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = Field(None, description="Put the prompt before the text; with max_tokens 0, write nothing.")
    logprobs: int | None = Field(
        None, ge=0, le=MOST_TOP_LOGPROBS, description="Log-probabilities, and those of as many of the likeliest tokens."
    )
    logit_bias: dict[str, Any] | None = Field(None, description="Not supported: only {}.")
    presence_penalty: float | None = Field(None, description="Not supported: only 0.")
    frequency_penalty: float | None = Field(None, description="Not supported: only 0.")
    suffix: str | None = Field(None, description="Not supported: only an empty one.")
    best_of: int | None = Field(None, ge=1, description="Not supported: only n.")
    user: str | None = Field(None, description="Accepted, and ignored.")

    top_k: int | None = Field(None, ge=0, lt=2**31, description="Sample among the k likeliest tokens; 0: all.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Leave out tokens less likely than this share of the top."
    )
    repetition_penalty: float | None = Field(None, ge=1e-6, le=1e6)  # with less, logits are infinite in float32
    ignore_eos: bool | None = Field(None, description="Write on after EOS.")
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, max_length=MAX_STOP_TOKENS)] | None
    ) = Field(None, description="Tokens that end a document and are not in its text.")
    max_link_depth: int | None = Field(None, ge=0, description="How far links are followed; 0: not at all; default 1.")
    corpus: str | None = Field(
        None, description='Name of the corpus that links lead to; "none": all targets are written; default the first.'
    )
    documents: bool | None = Field(
        None,
        description="Tell the linked documents: in each choice of an answer, unless this is false; of a stream, as "
        "named events, if this is true.",
    )

    @model_validator(mode="after")
    def _only_what_has_an_effect(self) -> CompletionRequest:
        for name, values in _NO_EFFECT.items():
            if getattr(self, name) not in values:
                raise _refused(name, f"{name} is not supported: leave it out")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _refused("best_of", f"best_of is not supported: it must be n, {self.n or 1}, got {self.best_of}")
        if self.stream_options is not None and not self.stream:
            raise _refused("stream_options", "stream_options is only for requests with stream true")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """As a list, however many they are."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class Logprobs(BaseModel):
    """A list item for each token, those of the prompt first if it is echoed.

    Attributes:
        tokens: their text; of one that is a part of a character "bytes:\\xe2\\x80".
        token_logprobs: natural log; null for the first token of a prompt.
        top_logprobs: the likeliest tokens, and the one that is there; null where token_logprobs has null, and as a
            whole where none were asked for.
        text_offset: where in the choice's text they start, in characters.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class ReadGrant(BaseModel):
    """From token `position` up to `end` (null: to the last), a document reads all of the one titled `title`."""

    title: str
    position: int
    end: int | None


class LinkedDocument(BaseModel):
    """A document that links brought in. `tokens` counts them, the layout's marks included."""

    title: str
    source: str
    text: str
    depth: int
    parent: str | None
    finish_reason: str | None
    truncated: bool
    tokens: int
    grants: list[ReadGrant]


class CompletionChoice(BaseModel):
    """`index` counts the choices of the first prompt, then those of the second, and so on.

    Attributes:
        documents: dependencies first; not in a stream.
        grants: what the text reads of them.
    """

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    documents: list[LinkedDocument] | None = None
    grants: list[ReadGrant] | None = None


class PromptTokensDetails(BaseModel):
    """Tokens of the prompts whose keys and values were there already."""

    cached_tokens: int


class DocumentsDetails(BaseModel):
    """The linked documents of all choices. `written_tokens` were written for them, `cached_tokens` found computed."""

    count: int
    tokens: int
    written_tokens: int
    cached_tokens: int


class Usage(BaseModel):
    """Tokens of the prompts, each counted once, and of the texts; those of linked documents are counted apart."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    documents: DocumentsDetails


class CompletionResponse(BaseModel):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "ds2ds"
    max_model_len: int = Field(description="Most tokens of a prompt and its text.")
    corpora: list[str] = Field(description="What `corpus` may name; the first is the default.")


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody


def _refused(field: str, why: str) -> PydanticCustomError:
    named = field.encode("ascii", "backslashreplace").decode()
    return PydanticCustomError("refused_field", "{why}", {"field": named, "why": why})
