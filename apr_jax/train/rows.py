"""Packed rows on disk: written once, read by training in any order through memory maps; and a resumable order of reading.

A folder holds one raw file per field of `Rows` ([N, S]; int16, token ids of large vocabularies int32), `sees.bin` (the bits
of [N, U, U], padded to bytes) and `rows.json` with the sizes. Weights are not stored: every label counts 1.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int

from apr_jax.train.packing import Rows

FIELDS = ("token", "position", "clock", "owner", "branch", "label")
NARROW = 1 << 15  # number of ids that signed 16 bits hold


def _dtype(field: str, vocabulary: int) -> type:
    return np.int32 if field in ("token", "label") and vocabulary > NARROW else np.int16


def write(folder: str | Path, parts: Iterable[Rows], length: int, threads: int, vocabulary: int = NARROW) -> int:
    """Write rows in the order given; returns their number.

    Args:
        folder: folder of the rows; made if missing, its rows are replaced.
        parts: groups of rows of NumPy arrays, [*, S] and [*, U, U].
        length: S, entries of a row.
        threads: U, threads of a row.
        vocabulary: token ids are below this number.

    Raises:
        ValueError: a number does not fit the dtype of its file, or a label has a weight other than 1.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: (folder / f"{name}.bin").open("wb") for name in (*FIELDS, "sees")}
    count = 0
    for rows in parts:
        if not np.array_equal(rows.weight, rows.label >= 0):
            raise ValueError("weight: rows on disk keep no weights, every label must have weight 1")
        for name in FIELDS:
            array, dtype = getattr(rows, name), _dtype(name, vocabulary)
            most = np.iinfo(dtype).max
            if array.size and (array.max() > most or array.min() < -1):
                raise ValueError(
                    f"{name} goes from {array.min()} to {array.max()}; these rows on disk hold -1 to {most}"
                )
            files[name].write(np.ascontiguousarray(array, dtype).tobytes())
        files["sees"].write(np.packbits(rows.sees.reshape(len(rows), -1), axis=1).tobytes())
        count += len(rows)
    for file in files.values():
        file.close()
    # Written last: a folder without this file is incomplete.
    sizes = {"rows": count, "length": length, "threads": threads, "vocabulary": vocabulary}
    (folder / "rows.json").write_text(json.dumps(sizes) + "\n")
    return count


@dataclasses.dataclass(frozen=True)
class RowStore:
    """Rows on disk, read on demand.

    Attributes:
        length: S, entries of a row.
        threads: U, threads of a row.
        arrays: memory maps by field, Int16 or Int32 [N, S].
        bits: memory map of `sees`, Uint8 [N, ceil(U U / 8)].
    """

    length: int
    threads: int
    arrays: dict[str, np.ndarray]
    bits: np.ndarray

    @classmethod
    def open(cls, folder: str | Path) -> "RowStore":
        """Opens a folder written by `write`.

        Raises:
            FileNotFoundError: the folder holds no complete rows.
            ValueError: the folder holds 0 rows.
        """
        folder = Path(folder)
        if not (folder / "rows.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds no complete rows; write them with `python -m experiments.make_data`"
            )
        sizes = json.loads((folder / "rows.json").read_text())
        count, length, threads = sizes["rows"], sizes["length"], sizes["threads"]
        if count == 0:
            raise ValueError(f"{folder} holds 0 rows; ask for more demonstrations or rollouts")
        kinds = {name: _dtype(name, sizes.get("vocabulary", NARROW)) for name in FIELDS}  # older folders do not say
        # Older folders have no branches.
        there = [name for name in FIELDS if name != "branch" or (folder / "branch.bin").is_file()]
        arrays = {n: np.memmap(folder / f"{n}.bin", kinds[n], "r", shape=(count, length)) for n in there}
        bits = np.memmap(folder / "sees.bin", np.uint8, "r", shape=(count, -(-(threads**2) // 8)))
        return cls(length, threads, arrays, bits)

    def __len__(self) -> int:
        return len(self.bits)

    def read(self, numbers: Int[np.ndarray, " B"]) -> Rows:
        """The rows with these numbers, in this order; number -1 gives a row of padding."""
        blank = numbers < 0
        found = {n: np.where(blank[:, None], -1, array[numbers]).astype(np.int32) for n, array in self.arrays.items()}
        found = {"branch": np.zeros_like(found["token"])} | found
        for name in ("token", "position", "clock", "branch"):
            found[name][blank] = 0
        sees = np.unpackbits(self.bits[numbers], axis=1, count=self.threads**2).astype(bool)
        weight = (found["label"] >= 0).astype(np.float32)
        return Rows(**found, weight=weight, sees=sees.reshape(-1, self.threads, self.threads))


def order(position: int, count: int, total: int, seed: int) -> Int[np.ndarray, " B"]:
    """The row numbers of a batch: places `position` to `position + count` of an endless sequence of epochs.

    The first epoch reads the rows in the order on disk; every later epoch has its own order, drawn from (seed, epoch). The
    position alone therefore determines the rest of the sequence.

    Args:
        position: number of places read before.
        count: B, rows of the batch.
        total: number of rows on disk.
        seed: seed of the orders.
    """
    places = np.arange(position, position + count)
    numbers = np.empty(count, np.int64)
    for epoch in np.unique(places // total):
        mine = places // total == epoch
        table = np.arange(total) if epoch == 0 else np.random.default_rng((seed, int(epoch))).permutation(total)
        numbers[mine] = table[places[mine] % total]
    return numbers
