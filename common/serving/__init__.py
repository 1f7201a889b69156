"""Models that leave this code: exported artifacts, and what serves them.

An artifact is a folder that a process with jax and numpy alone can run (`read`), with what turns
raw inputs into its arrays, and its outputs into predictions (`artifact`). `export` makes one of a
run, `onnx` and `huggingface` its other forms. `server` answers over HTTP (`application`), reads
bodies (`requests`), computes rows of many clients together (`batching`) and counts (`metrics`).
Training and models do not belong here.
"""
