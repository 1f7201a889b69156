"""Models made smaller and cheaper, by regex over parameter paths: quantized, pruned, with low-rank
updates. What is here works on any linen module, whose file knows nothing of it, and is driven by
the section `compress` of a config. Not here: what models compute, and how results are served."""
