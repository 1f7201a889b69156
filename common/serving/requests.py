"""Bodies of requests as inputs of a model: JSON, a picture's bytes, or a form with pictures.

Whatever is wrong with a request raises `Refused`, with its status and one line. A picture in JSON
is base64, or a data: URL, as it must be where inputs may be texts too; a text is never a path.
"""

import asyncio
import base64
import binascii
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, get_args

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from common.errors import BadInput, brief, nearest
from common.task import Predictor

LARGE = 1 << 16  # bytes of a body that is parsed in a thread
JSON, FORM, BYTES = "application/json", "multipart/form-data", "application/octet-stream"
MIB = 1 << 20


class Refused(Exception):
    """A request that has no answer.

    Attributes:
      status: of HTTP.
      headers: of the response.
    """

    def __init__(self, status: int, text: str, **headers: str):
        super().__init__(" ".join(text.split()))
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Asked(NamedTuple):
    """What a request asks for: inputs as `Predictor.read` takes them, each a `BadInput` if it is
    none, and options."""

    inputs: list
    options: dict[str, Any]


async def body(request: Request, most: int, hold: Callable[[int], None]) -> bytes:
    """The body of a request.

    Args:
      request: whose body nobody has read.
      most: bytes that it may have.
      hold: called with the bytes of each part as they arrive; may refuse them.

    Raises:
      Refused: if it is longer.
    """
    too_long = Refused(413, f"the body has more than {most / MIB:g} MiB; send fewer inputs at once")
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told[:20]) > most:
        raise too_long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_long
        hold(len(part))
        parts.append(part)
    return b"".join(parts)


async def asked(request: Request, content: bytes, predictor: Predictor) -> Asked:
    """What a request with this body asks for.

    Raises:
      Refused: if its kind is another than JSON or, for pictures, a form or bytes; or it is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    pictures = bool(predictor.suffixes)
    if kind == JSON:
        if len(content) > LARGE:
            return await asyncio.to_thread(_of_json, content, predictor)
        return _of_json(content, predictor)
    if pictures and kind == FORM:
        return await _of_form(request, content)
    if pictures and (kind == BYTES or kind.startswith("image/")):
        return Asked([content], {k: _value(v) for k, v in request.query_params.items()})
    kinds = ", ".join([JSON, *([FORM, BYTES] if pictures else [])])
    raise Refused(415, f"content-type: {brief(kind)}; send {kinds}", accept=kinds)


def _of_json(content: bytes, predictor: Predictor) -> Asked:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
    like = '{"inputs": […]}'
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
        raise Refused(400, f"the body is no object with a list of inputs: {like}")
    inputs = value.pop("inputs")
    if predictor.texts:
        inputs = [_text_or_picture(each, predictor.suffixes) for each in inputs]
    elif predictor.suffixes:
        inputs = [_picture(each) for each in inputs]
    return Asked(inputs, value)


def _text_or_picture(text: Any, suffixes: frozenset[str]) -> str | bytes | BadInput:
    """A text, or the bytes of a picture in a data: URL; never what `Predictor.read` takes for a
    path."""
    if not isinstance(text, str):
        return BadInput(f"{brief(text)} is neither a text nor a picture as a data: URL")
    text = text.strip()
    if text.startswith("data:image/"):
        return _picture(text)
    if os.path.splitext(text)[1].lower() in suffixes:
        return BadInput(
            f"{brief(text)} ends like a picture's file, and no input is a path: send the picture, "
            "as a data: URL"
        )
    return text


def _picture(text: Any) -> bytes | BadInput:
    """The bytes of a picture in base64, which may be a data: URL."""
    if not isinstance(text, str):
        return BadInput(f"{brief(text)} is no picture in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return BadInput(f"{brief(text)} is no picture in base64: {error}")


async def _of_form(request: Request, content: bytes) -> Asked:
    """The pictures of a form are its files, in order; its other fields are options."""

    async def stream() -> AsyncIterator[bytes]:
        yield content

    try:
        parser = MultiPartParser(request.headers, stream(), max_part_size=len(content) + 1)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(400, f"the form is damaged: {error}") from error
    inputs, options = [], {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                inputs.append(await value.read())
            else:
                options[name] = _value(value)
    finally:
        await form.close()
    return Asked(inputs, options)


def _value(text: str) -> Any:
    """An option that is written in a form or a URL."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class Options:
    """The options of a prediction that requests may set: those that compile nothing new.

    Attributes:
      fixed: as checked, of a request that sets none.
      open: {name: default} of those that may be set.
    """

    def __init__(self, check: Callable[[dict], dict], divide: Callable, settings: dict, known):
        """Args:
        check: {name: value} -> options, checked.
        divide: options -> (traced, static).
        settings: of the server.
        known: {name: Parameter} of the options there are.
        """
        self._check, self._divide, self._settings = check, divide, settings
        self._known = known
        self.fixed = check(settings)
        self.open = {name: self._default(name) for name in known if self._is_open(name)}

    def _default(self, name: str) -> Any:
        return self._settings.get(name, self._known[name].default)

    def _shape(self, options: dict) -> tuple:
        traced, static = self._divide(options)
        return sorted((k, getattr(v, "shape", ())) for k, v in traced.items()), static

    def _is_open(self, name: str) -> bool:
        """Whether another value compiles nothing: it is tried."""
        value = self._default(name)
        for other in (value + 1 if type(value) is int else None, 0.5, 0.25):
            try:
                if other is not None and other != value:
                    options = self._check(self._settings | {name: other})
                    return self._shape(options) == self._shape(self.fixed)
            except BadInput:
                continue
        return False

    def _number(self, name: str, value: Any) -> Any:
        """A value as JSON has it, which writes 2.0 as 2."""
        kinds = get_args(self._known[name].annotation) or (self._known[name].annotation,)
        if float not in kinds or int in kinds or type(value) is not int:
            return value
        try:
            return float(value)
        except OverflowError as error:
            raise Refused(400, f"{name}: {brief(value)} is no number of 64 bits") from error

    def of(self, given: dict[str, Any]) -> dict:
        """The options of a request, checked.

        Raises:
          Refused: if one is unknown, wrong, or fixed.
        """
        for name in given:
            if name not in self._known:
                raise Refused(400, f"{brief(name)}: unknown option; {nearest(name, self.open)}")
        values = {name: self._number(name, value) for name, value in given.items()}
        # Other values of those that are not open are never checked: they may name a file here.
        closed = {name: values.pop(name) for name in given if name not in self.open}
        different = sorted(name for name, x in closed.items() if x != self._default(name))
        if different:
            names = ", ".join(different)
            raise Refused(400, f"{names}: fixed when the server was started")
        if not values:
            return self.fixed
        try:
            options = self._check(self._settings | values)
        except BadInput as error:
            raise Refused(400, str(error)) from error
        if self._shape(options) != self._shape(self.fixed):
            raise Refused(400, f"{', '.join(values)}: fixed when the server was started")
        return options
