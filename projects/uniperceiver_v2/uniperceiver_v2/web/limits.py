"""How much a visitor may ask. What is larger is refused in a sentence, before it costs anything."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UserError
from ..reading import require_text


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        upload_bytes: of an uploaded file.
        pixels: of a picture, width times height.
        texts: labels or phrases of a question.
        text_length: characters of each.
        waiting: requests that may wait. Further ones are refused.
        seconds: for a request, once it is its turn.
        searched: pictures of the folder that can be searched.
        kept_encodings, kept_pixels: of the pictures that were asked about last.
        stored_bytes: of all uploads and pictures of answers that are on the disk at a time.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 50 * 10**6
    texts: int = 50
    text_length: int = 200
    waiting: int = 20
    seconds: float = 30.0
    searched: int = 2000
    kept_encodings: int = 16
    kept_pixels: int = 80 * 10**6
    stored_bytes: int = 2**30

    def list_of(self, text: str | None, what: str) -> list[str]:
        """The texts of a field, with commas or line breaks between them. One that is repeated counts once.

        Args:
            text: what was typed.
            what: "labels" or "phrases", for messages.

        Raises:
            UserError: there are too many, or one is too long.
        """
        parts = (" ".join(part.split()) for part in re.split(r"[,\n]", text or ""))
        texts = list(dict.fromkeys(part for part in parts if part))
        if len(texts) > self.texts:
            raise UserError(f"there are {len(texts)} {what}: this page takes {self.texts} at most")
        return [self.text_of(part, what) for part in texts]

    def text_of(self, text: str | None, what: str) -> str:
        """A text on one line.

        Raises:
            UserError: it is too long, or has half a surrogate pair.
        """
        words = " ".join((text or "").split())
        if len(words) > self.text_length:
            raise UserError(
                f'{what}: "{words[:40]}..." has {len(words)} characters, this page takes {self.text_length} at most'
            )
        if words:
            require_text(words, what)
        return words


def megabytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:.3g} MB"
