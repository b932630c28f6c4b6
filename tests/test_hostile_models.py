"""Model folders of strangers: neither code nor pickled objects that lie in one are run."""

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_explore.errors import ModelError
from sae_explore.models.model import load_full_model, load_model
from sae_explore.saes.train import TrainConfig, TrainState
from sae_explore.types import HookPoint

HOOK = HookPoint.parse("blocks.1.hook_resid_post")


class Evil:
    """Unpickled without care, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def folder(gpt2_folder, tmp_path) -> Path:
    shutil.copytree(gpt2_folder, tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_code_in_the_folder_is_not_run(folder, tmp_path, monkeypatch, file):
    """Also where the file asks for it and says that nothing else will do."""
    mark = tmp_path / "mark"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    kinds = "from transformers import GPT2Config as Config, GPT2LMHeadModel as Model, PreTrainedTokenizerFast as Base\n"
    (folder / "evil.py").write_text(f"{kinds}from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Tok(Base):\n    pass\n")
    if file == "config.json":
        change(folder / file, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    else:
        change(folder / file, auto_map={"AutoTokenizer": [None, "evil.Tok"]}, tokenizer_class="Tok")
    with contextlib.suppress(ModelError):
        load_model(folder, hook=HOOK)
    assert not mark.exists()


@pytest.mark.parametrize("load", [lambda folder: load_model(folder, hook=HOOK), load_full_model])
def test_pickled_objects_among_the_weights_are_not_made(folder, tmp_path, load):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "more": Evil(tmp_path / "mark")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="hold other objects than tensors, of which none is made here") as refused:
        load(folder)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "mark").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # it would have been
    assert (tmp_path / "mark").exists()


def test_pickled_objects_in_a_state_of_training_are_not_made(tmp_path):
    """It lies in the cache folder, which others may write to."""
    torch.save({"config": Evil(tmp_path / "mark")}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        TrainState.load(tmp_path / "checkpoint.pt", TrainConfig(), torch.device("cpu"))
    assert not (tmp_path / "mark").exists()
