"""Decoding: how tokens are chosen from the logits of a causal model, by sampling, by a beam of
hypotheses, or with a smaller model that drafts them. Models are seen through one function alone
(`lm.decoding.causal`); texts and prompts are `lm.generate`'s."""
