"""Mutate pruned files at random, and see that each is refused by name or gives the very same network.

`python tests/fuzz_artifact.py --bytes 10000 --fields 5000` mutates files of an MLP with batch norm, of a classifier
around it, and of a network whose class is given. Every mutation must end in a `ValueError` that names the file, or in
the values that the file holds, within a second of the processor's time. CI runs a part (`tests/artifact/test_fuzz.py`).
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mlprank
from mlprank.artifact.checkpoint import DIGEST, digest_of
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier

INPUTS = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
STRANGERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2**31,
    10**12,
    10**30,
    0.5,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 1000,
    "os.system",
    "torch.nn.Linear",
    "mlprank.models.MLP",
    [],
    [40000, 40000],
    [10**9] * 3,
    [[]],
    list(range(5000)),
    {},
    {"a": 1},
    {0: torch.arange(3)},
    torch.tensor(1.0),
    torch.zeros(0),
    torch.zeros(0, dtype=torch.int64),
    torch.arange(3),
    torch.tensor([5, 1, 3]),
    torch.tensor([-1, 2]),
    torch.tensor([0, 2**40]),
    torch.zeros(2, 3, dtype=torch.bool),
    torch.zeros(1).expand(100_000, 100_000),
)


class Bare(nn.Module):
    """A network that records nothing of how it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 10, bias=False), nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.sigmoid(self.fc(x)))
        return out


@dataclass
class Tally:
    """How mutations ended: refused by name, the same network, or a fault with the mutation that shows it."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __str__(self) -> str:
        ends = ", ".join(f"{number:,} {end}" for end, number in sorted(self.ends.items()))
        return f"{sum(self.ends.values()):,} tried: {ends}; {len(self.faults)} faults; slowest {self.slowest_s:.2f} s"


def subjects(folder: Path) -> list[tuple[Path, nn.Module | None]]:
    """Write the files to mutate; with each goes the dense instance that it needs, if it needs one."""
    torch.manual_seed(0)
    networks: dict[str, tuple[nn.Module, nn.Module | None]] = {
        "mlp": (MLP(6, [10, 8], 3, batch_norm=True), None),
        "classifier": (ImageClassifier(MLP(6, [10, 8], 3)), None),
        "bare": (Bare(), Bare()),
    }
    return [
        (mlprank.prune(network.eval(), INPUTS, amount=0.4).save(folder / f"{name}.ckpt"), dense)
        for name, (network, dense) in networks.items()
    ]


def mutated_bytes(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Flip, overwrite, cut, insert or move some bytes."""
    changed = bytearray(data)
    kind = draw.choice(("bit", "byte", "bytes", "cut", "insert", "remove", "swap", "truncate"))
    at = draw.randrange(len(changed))
    length = draw.choice((1, 2, 4, 16, 200))
    if kind == "bit":
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        changed[at] = draw.randrange(256)
    elif kind == "bytes":
        changed[at : at + length] = draw.randbytes(len(changed[at : at + length]))
    elif kind == "cut":
        del changed[:at]
    elif kind == "insert":
        changed[at:at] = draw.randbytes(length)
    elif kind == "remove":
        del changed[at : at + length]
    elif kind == "swap":
        other = draw.randrange(len(changed))
        changed[at], changed[other] = changed[other], changed[at]
    else:
        del changed[at:]
    return bytes(changed), f"{kind} at {at}, {length}"


def mutated_fields(content: dict[str, Any], draw: random.Random) -> tuple[dict[str, Any], str]:
    """Replace, remove or add something somewhere in the content; mostly with a digest that fits again."""
    changed = copy.deepcopy(content)
    said = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        place: Any = changed
        path: list[Any] = []
        while isinstance(place, (dict, list)) and place:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            path.append(key)
            if draw.random() < 0.25 or not isinstance(place[key], (dict, list)) or not place[key]:
                break
            place = place[key]
        key = path[-1]
        kind = draw.choice(("replace", "replace", "replace", "remove", "add", "tensor"))
        if kind == "remove":
            del place[key]
        elif kind == "add" and isinstance(place, dict):
            place[draw.choice(("extra", 7, "fc9.weight"))] = draw.choice(STRANGERS)
        elif kind == "tensor" and isinstance(place[key], Tensor) and place[key].numel() < 10**6:  # not a huge view
            place[key] = draw.choice(
                (
                    place[key].reshape(-1)[:1],
                    place[key].double(),
                    place[key].unsqueeze(0),
                    place[key].reshape(-1).flip(0),
                )
            )
        else:
            place[key] = draw.choice(STRANGERS)
        said.append(f"{kind} {path}")
    if draw.random() < 0.9 and DIGEST in changed:
        changed[DIGEST] = digest_of({name: _digestible(value) for name, value in changed.items()})
    return changed, ", ".join(said)


def _digestible(value: Any) -> Any:
    """A huge view of one number would be written out to be digested."""
    if isinstance(value, Mapping):
        return {key: _digestible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_digestible(item) for item in value]
    return value.flatten()[:1] if isinstance(value, Tensor) and value.numel() > 10**6 else value


def fuzz(number: int, *, seed: int, write: Callable[[Path, Path, random.Random], str], limit_s: float = 1.0) -> Tally:
    """Mutate so many times, and tally how each one ends."""
    tally, draw = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = subjects(folder)
        target = folder / "mutated.ckpt"
        for index in range(number):
            source, dense = files[index % len(files)]
            said = f"{source.name}: {write(source, target, draw)}"
            start = time.process_time()
            try:
                loaded = mlprank.load_pruned(target, dense)
            except ValueError as error:
                end = "refused"
                if str(target) not in str(error) and "class_path" not in str(error):
                    tally.faults.append(f"{said}: the message does not name the file: {error}")
            except Exception as error:
                end = "unnamed error"
                tally.faults.append(f"{said}: {type(error).__name__}: {error}")
            else:
                end = "harmless"
                if not _holds(loaded, source if write is write_bytes else target):
                    end = "other values"
                    tally.faults.append(f"{said}: loaded with other values")
            seconds = time.process_time() - start
            tally.slowest_s = max(tally.slowest_s, seconds)
            if seconds > limit_s:
                tally.faults.append(f"{said}: took {seconds:.1f} s")
            tally.ends[end] += 1
    return tally


def _holds(loaded: nn.Module, file: Path) -> bool:
    """Whether a network has the values of a file, and takes the inputs."""
    expected = torch.load(file, weights_only=True)["state_dict"]
    own = loaded.state_dict()
    dtypes = {tensor.dtype for tensor in own.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:  # a file may hold a network of several, which needs autocast to run
        with torch.no_grad():
            loaded(INPUTS.to(*dtypes))
    return own.keys() == expected.keys() and all(
        own[name].shape == tensor.shape and torch.equal(own[name].double(), tensor.double())
        for name, tensor in expected.items()
    )


def write_bytes(source: Path, target: Path, draw: random.Random) -> str:
    """Write a file whose bytes are mutated; a network that it gives must be that of the source."""
    data, said = mutated_bytes(source.read_bytes(), draw)
    target.write_bytes(data)
    return said


def write_fields(source: Path, target: Path, draw: random.Random) -> str:
    """Write a whole file whose content is mutated."""
    content, said = mutated_fields(torch.load(source, weights_only=True), draw)
    torch.save(content, target)
    return said


def main() -> int:
    """Run both kinds, print the figures, and return 1 where a mutation showed a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=10_000)
    parser.add_argument("--fields", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    faults = 0
    for kind, number, write in (("bytes", args.bytes, write_bytes), ("fields", args.fields, write_fields)):
        tally = fuzz(number, seed=args.seed, write=write)
        print(f"{kind}: {tally}")
        print("".join(f"  {fault[:300]}\n" for fault in tally.faults[:20]), end="")
        faults += len(tally.faults)
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
