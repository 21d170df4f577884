from .text_encoder import TextEncoder

__all__ = ["TextEncoder"]
