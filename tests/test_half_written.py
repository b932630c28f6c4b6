"""Files that stages, pages and readers come back to: killed before the last step of writing one, nothing but the old file has its name."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_explore.activations import collect
from sae_explore.activations.activation_shards import ShardWriter
from sae_explore.activations.activation_store import StoreWriter
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import Work
from sae_explore.files.bundle_files import write_json
from sae_explore.files.tensor_file import write_tensors
from sae_explore.saes.train import TrainConfig, TrainState
from sae_explore.texts.uploads import check_upload


class Killed(BaseException):
    """As good as a kill: nothing in the program catches it."""


def a_part_of_the_store(path: Path, n: int) -> None:
    StoreWriter(path.parent, 4).write_part(0, np.array([0, 1]), np.array([n]), np.array([1.0 + n], np.float32))


def the_index_of_shards(path: Path, n: int) -> None:
    writer = ShardWriter(path.parent, 3, 8)
    writer.add(torch.ones(4 + n, 3))
    writer.finish()


def the_state_of_training(path: Path, n: int) -> None:
    params = {"W_encT": torch.ones(4, 3), "b_enc": torch.zeros(4), "W_dec": torch.ones(4, 3), "b_dec": torch.full((3,), float(n))}
    config = TrainConfig(4, 2, 1, lr=1e-3)
    TrainState(params, config, 1.0, 1.0).save(path, config)


WRITERS = {
    "part-000000.npz": a_part_of_the_store,
    "index.json": the_index_of_shards,
    "checkpoint.pt": the_state_of_training,
    "block-00000.npy": lambda path, n: collect._save_array(path, np.full((2, 3), n, np.float16)),
    "state.json": lambda path, n: collect._save_json(path, {"tokens": n}),
    "manifest.json": lambda path, n: write_json(path, {"n": n}),
    "lens.safetensors": lambda path, n: write_tensors(path, {"a": np.full(5, n, np.int32)}),
}


@pytest.fixture
def killed(monkeypatch):
    """Calls a function, and kills it where it would give a file its name."""

    def run(function, *args) -> None:
        def kill(*_args, **_options):
            raise Killed

        with monkeypatch.context() as patched:
            for owner, name in ((os, "replace"), (os, "rename"), (Path, "replace"), (Path, "rename")):
                patched.setattr(owner, name, kill)
            with pytest.raises(Killed):
                function(*args)

    return run


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_what_was_there(tmp_path, killed, name):
    write, path = WRITERS[name], tmp_path / "folder" / name
    path.parent.mkdir()
    killed(write, path, 1)
    assert not path.exists()
    write(path, 1)
    old = path.read_bytes()
    killed(write, path, 2)
    assert path.read_bytes() == old
    write(path, 2)
    assert path.read_bytes() != old


def test_a_killed_upload_is_no_file_that_a_build_reads(tmp_path, killed):
    upload = check_upload("a.txt", io.BytesIO(b"some text"))
    killed(upload.save, tmp_path, "demo")
    assert not (tmp_path / upload.spec("demo")).exists()
    upload.save(tmp_path, "demo")
    assert (tmp_path / upload.spec("demo")).read_bytes() == b"some text"


def test_json_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave an empty file under the name."""
    done, fsync, replace = [], os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append(os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("named"), replace(*names)))
    write_json(tmp_path / "a.json", {"x": "y" * 1_000})
    assert done == [(tmp_path / "a.json").stat().st_size, "named"]


def test_tensors_are_flushed_before_the_file_has_its_name(tmp_path, monkeypatch):
    done, flush, replace = [], np.memmap.flush, os.replace
    monkeypatch.setattr(np.memmap, "flush", lambda self: (done.append(len(self)), flush(self)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("named"), replace(*names)))
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones(3, np.float32), "b": np.ones(5, bool)})
    assert done == [3, 5, "named"]


def test_a_working_folder_that_is_cleared_loses_its_state_first(tmp_path, monkeypatch):
    """Else a kill on the way would leave a state that says of lost files that they are there."""
    first, other = BuildRequest("b", "gpt2", k=3), BuildRequest("b", "gpt2", k=4)
    Work(tmp_path, first, fresh=False).stage("texts", lambda: {"documents": 1})
    assert Work(tmp_path, first, fresh=False).state["done"] == {"texts": {"documents": 1}}

    def kill(*_args, **_options):
        raise Killed

    listed = Path.iterdir
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self))))  # a folder's own order may have it first by chance
        patched.setattr(shutil, "rmtree", kill)
        with pytest.raises(Killed):
            Work(tmp_path, other, fresh=False)
    assert Work(tmp_path, first, fresh=False).state["done"] == {}
