"""One process of several: prints the digest of each row of its batches, as it trains on them."""

import hashlib
import json
import sys

import numpy as np

from common.data import loading
from common.devices import mesh, runtime

if __name__ == "__main__":
    runtime.start(cache="none")
    import helpers
    import jax

    from common.training.program import prepare

    workers = int(sys.argv[1])
    config = helpers.load(helpers.TOY, **{"data.resident": False, "data.workers": workers})
    made = prepare(config)
    source, size = made.task.sources["train"], made.plan.batch_size
    rows = mesh.local_rows(made.layout, size)
    found = {}
    batches = loading.train_batches(
        source, config["seed"], range(2, 5), size, made.layout, workers=workers
    )
    for step, batch in enumerate(batches, 2):
        parts = {}
        for name, value in sorted(batch.items()):
            for shard in value.addressable_shards:
                begin = shard.index[0].start or 0
                for i, row in enumerate(np.asarray(shard.data)):
                    parts.setdefault(begin + i, hashlib.sha256()).update(
                        name.encode() + row.tobytes()
                    )
        assert sorted(parts) == rows.tolist()
        found[step] = {row: sha.hexdigest()[:16] for row, sha in parts.items()}
    # Steps as well: all processes take part, and each prints the same losses.
    from common.laws.measure import train_losses

    losses, _ = train_losses(made, 2)
    print(json.dumps({"rows": found, "losses": losses, "processes": jax.process_count()}))
