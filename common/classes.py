"""Classes and their probabilities as predictions: what classifiers of pictures and texts share.

Letters: K classes.
"""

import numpy as np

from common.errors import require


def check_top(top: int, count: int) -> int:
    """The number of classes to tell, of `count`. Raises `BadInput` if it is not positive."""
    require(top > 0, f"top: {top} is not a positive number of classes")
    return min(top, count)


def result(logits, names: tuple[str, ...], top: int, multi_label: bool = False) -> dict:
    """{"class": the likeliest, "probability": its, "probabilities": {class: of the likeliest}}.

    With `multi_label` each class is there or not, and "classes" are those that are likelier there
    than not, in place of "class" and "probability".

    Args:
      logits: f32[K].
      names: of the classes.
      top: how many probabilities to tell.
      multi_label: probabilities are sigmoids, not a softmax.
    """
    logits = np.asarray(logits, np.float64)
    if multi_label:
        shares = 1 / (1 + np.exp(-logits))
    else:
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
    best = np.argsort(-logits, kind="stable")
    told = {"probabilities": {names[i]: float(shares[i]) for i in best[:top]}}
    if multi_label:
        return {"classes": [names[i] for i in best if logits[i] > 0]} | told
    return {"class": names[best[0]], "probability": float(shares[best[0]])} | told


def line(result: dict) -> str:
    """'seven 98.2%, one 1.1%': what people read of `result`."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["probabilities"].items())
    return shares if "class" in result else f"[{', '.join(result['classes'])}] {shares}"
