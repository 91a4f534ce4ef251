"""Request bodies within their bound, and whether the caller is still there."""

from __future__ import annotations

from modelworks.kit.errors import InvalidInput, TooLarge
from starlette.requests import ClientDisconnect, Request


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it has more than `bytes_max` bytes; what is beyond is not read.
        InvalidInput: the caller left in the middle.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > bytes_max:
                raise _too_large(bytes_max)
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise InvalidInput("the connection closed before the body was complete") from error
    return b"".join(chunks)


async def left(request: Request) -> None:
    """Returns when the caller has closed the connection. The body must have been read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body has more than {bytes_max} bytes: send fewer rows at once, or queue them as jobs")
