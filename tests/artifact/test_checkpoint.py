"""What is read from a checkpoint file, and what is refused."""

import hashlib
import io
import pickle
from pathlib import Path

import pytest
import torch

from mlprank.artifact.checkpoint import digest, read_checkpoint, sha256


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_dict_of_tensors_and_plain_types_is_read(tmp_path):
    torch.save({"model": {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert found["epoch"] == 3
    assert torch.equal(found["model"]["weight"], torch.ones(2))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, r"checkpoint .*a\.ckpt does not exist"),
        (lambda path: path.write_text("hello"), r"a\.ckpt is damaged .*nothing that torch.save writes looks like this"),
        (lambda path: path.write_bytes(b""), r"a\.ckpt is damaged"),
        (lambda path: path.write_bytes(whole()[:300]), r"a\.ckpt is damaged"),
        (lambda path: torch.save([1], path), r"a\.ckpt holds a list, not a checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps({"model": Evil()})), r"a\.ckpt .*would run code"),
    ],
    ids=["missing", "text", "empty", "cut", "list", "evil"],
)
def test_other_files_are_refused_by_name_and_run_no_code(tmp_path, capsys, write, said):
    write(tmp_path / "a.ckpt")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_checkpoint(tmp_path / "a.ckpt")
    assert capsys.readouterr().out == ""


def whole() -> bytes:
    """A whole checkpoint, as bytes."""
    file = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(100)}}, file)
    return file.getvalue()


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    path = Path(tmp_path / "a.ckpt")
    path.write_bytes(b"x" * 3_000_000)
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_knows_types_and_no_order_of_entries() -> None:
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
    assert digest(1) != digest(1.0)
