"""Models of other libraries: file formats, tables of names, and one engine that reads and writes
them in both directions.

Belongs here: what every domain's weights need. Does not: the families, which are tables beside
their models (`lm.weights`, `vision.weights`).
"""
