"""ONNX, and OpenVINO of it, of exported functions, with their weights inside.

jax2onnx converts a traced function; where it lacks an operation, or has it for images alone, the
function is traced anew with others in its place.
"""


def write(folder, lowered, weights, expected, forms):
    raise NotImplementedError
