"""One PNG or JPEG, decoded."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from plainres.data.records import SIDE, Pixels
from plainres.errors import UserError

LIMIT = 1 << 20
"""The most bytes of one picture: 32x32 pixels need a few thousand."""
_MODES = ("RGB", "L", "P", "1", "LA", "RGBA")  # eight bits or fewer a channel


def decode(body: bytes, where: str) -> Pixels:
    """A 32x32 PNG or JPEG as uint8 (3072,), planes red, green, blue; anything else is a UserError naming `where`.

    Gray and palette pictures become RGB; transparency is dropped.
    """
    try:
        picture = Image.open(io.BytesIO(body), formats=("PNG", "JPEG"))
    except UnidentifiedImageError:
        raise UserError(f"{where} is no PNG or JPEG picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{where}: {error}") from None
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error) as error:
        raise UserError(f"{where} cannot be decoded: {error}") from None
    if picture.size != (SIDE, SIDE):
        width, height = picture.size
        raise UserError(f"{where} is {width}x{height} pixels, expected {SIDE}x{SIDE}")
    if picture.mode not in _MODES:
        raise UserError(f"{where} has pixels of kind {picture.mode}, expected RGB of 8 bits a channel")
    try:
        pixels = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{where} cannot be decoded: {error}") from None
    return pixels.transpose(2, 0, 1).reshape(-1)
