"""Any refembed model over a Ray Data dataset: every actor loads it once, and Ray says which rows go where.

    import ray
    from refembed.adapters.ray_data import Embed

    rows = ray.data.from_items([{"id": 1, "text": "Mars is red."}, {"id": 2, "text": None}])
    done = rows.map_batches(
        Embed,
        fn_constructor_kwargs={"model": "google/embeddinggemma-300m", "dimensions": 256},
        batch_format="pyarrow",
        batch_size=1024,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )
    print(done.take_all())  # or done.write_parquet("embedded")

Every column stays, and two come: embedding, a list of fixed size, null where a text is at fault; and fault, which says
why, null elsewhere. Ray gives whatever is done first, so each row needs a key of its own. An actor loads the model by
its name: a folder must be there on every machine. num_gpus=1 gives each a GPU, where backend torch is installed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..bulk import encode_each
from ..embedder import load
from ..errors import RefembedError
from .parquet import cells_of


class Embed:
    """What map_batches makes an actor of.

    text, title          names of columns
    model ... revision   load()'s; threads are an actor's, and its num_cpus should be as many
    options              encode_each()'s: task, prompt, dimensions, quantize, on_long
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        text: str = "text",
        title: str | None = None,
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = 1,
        revision: str | None = None,
        **options: Any,
    ) -> None:
        self.model = load(model, backend=backend, precision=precision, threads=threads, revision=revision)
        self.text, self.title, self.options = text, title, options

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not isinstance(batch, pa.Table):
            raise RefembedError("option-format", f'a batch is {type(batch).__name__}; say batch_format="pyarrow"')
        titles = None if self.title is None else cells_of(batch[self.title])
        vectors, faults = encode_each(self.model, cells_of(batch[self.text]), titles, **self.options)
        null = np.array([fault is not None for fault in faults], bool)
        vectors[null] = 0
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1], mask=pa.array(null))
        reasons = pa.array([fault and f"{fault.id}: {fault.reason}" for fault in faults], pa.string())
        kept = batch.drop_columns([name for name in batch.column_names if name in ("embedding", "fault")])
        return kept.append_column("embedding", embedding).append_column("fault", reasons)
