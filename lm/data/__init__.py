"""Text as rows of tokens: corpora, tokenizers, token stores, labelled texts.

Belongs here: everything between files of text and a `Source`. Does not: what is hidden from a
model or asked of it (`lm.masking`, the tasks).
"""
