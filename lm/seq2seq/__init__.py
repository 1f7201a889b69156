"""Sequence to sequence: encoder-decoders, and the task that trains them on pairs of texts.

An encoder-decoder has the methods `encode`, `decode` and `__call__` of
`lm.seq2seq.transformer.EncoderDecoder`.
"""
