"""Text as rows of tokens: corpora, tokenizers, token stores, labelled texts.

Belongs here: everything between text files and a `Source`. Does not: masking and objectives
(`lm.masking`, the tasks).
"""
