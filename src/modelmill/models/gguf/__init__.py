"""A model as one GGUF file, which llama.cpp and what is built on it read.

Knows the gguf package, numpy and files; needs no torch, so that whoever exports a model needs
none.  Holds one tensor at a time.
"""

from modelmill.models.gguf.outline import Outline, read_outline
from modelmill.models.gguf.writing import write_gguf

__all__ = ["Outline", "read_outline", "write_gguf"]
