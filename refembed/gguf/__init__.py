"""GGUF, llama.cpp's file form: config, tokenizer and weights in one file, opened as a checkpoint.

The gguf library is not used: of the released model's header it makes 700 MB of objects in ten seconds, and it believes
what a file says of its own sizes. The tests hold this reader to it.
"""
