from .text_encoder import TextCache, TextEncoder

__all__ = ["TextCache", "TextEncoder"]
