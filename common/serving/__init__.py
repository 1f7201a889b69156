"""Models that leave this code: exported artifacts, and what serves them.

An artifact is a folder that a process with jax and numpy alone can run (`read`), with what turns
raw inputs into its arrays, and its outputs into predictions (`artifact`). `export` makes one of a
run, `onnx` and `huggingface` its other forms. `server` answers requests over HTTP, whose bodies
`requests` reads and whose rows `batching` computes together. Training and models do not belong
here.
"""
