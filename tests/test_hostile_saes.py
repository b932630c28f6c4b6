"""SAE files of strangers: what is wrong in them is one sentence, nothing in them is run, and a small file takes no large memory."""

import io
import json
import math
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_checks import hostile, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_explore.errors import InputError, SaeError
from sae_explore.saes import sae_files
from sae_explore.saes.sae_formats import load_sae, save_sae
from sae_explore.saes.sae_saelens import FILES, read

D_IN, D_SAE = 4, 8


@pytest.fixture(scope="module")
def saved(random_sae, tmp_path_factory) -> Path:
    """A folder in SAELens's format."""
    folder = tmp_path_factory.mktemp("saved")
    save_sae(random_sae("topk", D_IN, D_SAE, k=3), folder)
    return folder


# ---- configurations ----------------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "CON", "x" * 5000, "\u202e", "\ud800", "topk", "relu", 1e400, math.nan, 2**24, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
OLD = {"architecture": "standard", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "d_in": D_IN, "d_sae": D_SAE, "activation_fn_str": "relu",
       "activation_fn_kwargs": {}, "normalize_activations": "none", "model_name": "gpt2", "context_size": 64, "prepend_bos": True}  # fmt: skip


@hostile
@given(st.data())
def test_any_configuration_is_read_or_refused(saved, tmp_path, data):
    config = dict(data.draw(st.sampled_from([json.loads((saved / FILES[0]).read_text()), OLD])))
    for _ in range(data.draw(st.integers(1, 3))):
        inner = config
        if isinstance(config.get("metadata"), dict) and data.draw(st.booleans()):
            inner = config["metadata"] = dict(config["metadata"])
        key = data.draw(st.sampled_from([*inner, "norm_scaling_factor", "rescale_acts_by_decoder_norm"]) | st.text(max_size=6))
        if data.draw(st.booleans()):
            inner.pop(key, None)
        else:
            inner[key] = data.draw(junk)
    write_beside(saved, tmp_path, json.dumps(config).encode())
    read_or_refuse(tmp_path)


def write_beside(saved: Path, folder: Path, config: bytes) -> None:
    (folder / FILES[0]).write_bytes(config)
    if not (folder / FILES[1]).exists():
        (folder / FILES[1]).write_bytes((saved / FILES[1]).read_bytes())


@hostile
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda s: s.encode("utf-16")))
def test_any_bytes_as_a_configuration(saved, tmp_path, data):
    write_beside(saved, tmp_path, data)
    assert read_or_refuse(tmp_path) is None


@pytest.mark.parametrize("depth", [300, 900, 950, 970, 990, 100_000])
@pytest.mark.parametrize("key", ["k", "architecture", "normalize_activations", "reshape_activations", "metadata", "dtype", "other"])
def test_values_nested_to_any_depth(saved, tmp_path, depth, key):
    """Near the limit a value can be read, and then not be written into a message by the usual means."""
    config = json.loads((saved / FILES[0]).read_text())
    text = json.dumps({**config, key: "HERE"}).replace('"HERE"', "[" * depth + "]" * depth)
    write_beside(saved, tmp_path, text.encode())
    assert read_or_refuse(tmp_path) is None or key == "dtype"


def test_a_huge_configuration_is_not_read(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(sae_files, "_MAX_CONFIG", 1_000)
    write_beside(saved, tmp_path, b" " * 1_001)
    with pytest.raises(SaeError, match="larger than 1,000 bytes"):
        load_sae(tmp_path)


@pytest.mark.parametrize("d_sae", [0, -1, 10**18, 2**63, 1.5, "8", True, math.nan, math.inf])
def test_impossible_sizes_allocate_nothing(saved, tmp_path, d_sae):
    config = json.loads((saved / FILES[0]).read_text())
    write_beside(saved, tmp_path, json.dumps({**config, "d_sae": d_sae}).encode())
    with pytest.raises(SaeError, match=r"d_sae is|has shape"):
        load_sae(tmp_path)


# ---- safetensors -------------------------------------------------------------------------------------------------------


def with_header(header: bytes, data: bytes = bytes(512), length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(**changes) -> dict:
    return {"dtype": "F32", "shape": [D_IN, D_SAE], "data_offsets": [0, 128]} | changes


HEADERS = {
    "a length beyond measure": with_header(b"{}", length=2**63),
    "the longest length": with_header(b"{}", length=2**64 - 1),
    "a length beyond the file": with_header(b"{}", length=10_000),
    "offsets below zero": with_header(json.dumps({"W_enc": entry(data_offsets=[-128, 0])}).encode()),
    "offsets that overlap": with_header(json.dumps({"W_enc": entry(), "W_dec": entry(data_offsets=[64, 192])}).encode(), bytes(192)),
    "offsets beyond the file": with_header(json.dumps({"W_enc": entry(data_offsets=[0, 2**40], shape=[2**38])}).encode()),
    "a shape beyond measure": with_header(json.dumps({"W_enc": entry(shape=[2**62, 2**62], data_offsets=[0, 0])}).encode()),
    "an empty side beyond measure": with_header(json.dumps({"W_enc": entry(shape=[0, 2**62], data_offsets=[0, 0])}).encode(), b""),
    "a type that is none": with_header(json.dumps({"W_enc": entry(dtype="OBJECT")}).encode(), bytes(128)),
    "types of other numbers": with_header(json.dumps({"W_enc": entry(dtype="C64", shape=[16])}).encode(), bytes(128)),
    "numbers of four bits": with_header(json.dumps({"W_enc": entry(dtype="F4", shape=[256])}).encode(), bytes(128)),
    "the same key twice": with_header(b'{"W_enc":' + json.dumps(entry()).encode() + b',"W_enc":' + json.dumps(entry()).encode() + b"}", bytes(128)),
    "brackets without end": with_header(b"[" * 100_000),
    "objects without end": with_header(b'{"a":' * 50_000),
    "not utf-8": with_header(b'{"\xff": 1}'),
    "nothing": b"",
    "less than a length": b"1234567",
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_hostile_headers_are_refused(saved, tmp_path, what):
    write_beside(saved, tmp_path, (saved / FILES[0]).read_bytes())
    (tmp_path / FILES[1]).write_bytes(HEADERS[what])
    assert read_or_refuse(tmp_path) is None


@hostile
@given(st.data())
def test_any_flipped_bytes_of_weights_are_read_or_refused(saved, tmp_path, data):
    content = bytearray((saved / FILES[1]).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1) | st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    write_beside(saved, tmp_path, (saved / FILES[0]).read_bytes())
    (tmp_path / FILES[1]).write_bytes(content)
    read_or_refuse(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_weights_that_are_no_numbers_are_refused_by_name(random_sae, tmp_path, name, value):
    sae = random_sae("topk", D_IN, D_SAE, k=3)
    save_sae(sae, tmp_path)
    tensors = {key: getattr(sae, key).clone() for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors[name].view(-1)[3] = value
    save_file(tensors, tmp_path / FILES[1])
    with pytest.raises(SaeError, match=f"{name} holds values that are not finite"):
        load_sae(tmp_path)


def test_weights_that_would_overflow_when_they_are_folded_are_refused(random_sae, tmp_path):
    sae = random_sae("standard", D_IN, D_SAE)
    save_sae(sae, tmp_path)
    tensors = {key: getattr(sae, key).clone() for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors["W_dec"][2] = 3e38
    save_file(tensors, tmp_path / FILES[1])
    assert torch.isfinite(read(tmp_path, "").W_dec).all()
    with pytest.raises(SaeError, match="W_enc holds values that are not finite"):
        load_sae(tmp_path)


# ---- pickles -----------------------------------------------------------------------------------------------------------


class Evil:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def state(**changes) -> dict:
    return {"pre_bias": torch.zeros(D_IN), "encoder.weight": torch.ones(D_SAE, D_IN), "latent_bias": torch.zeros(D_SAE),
            "decoder.weight": torch.ones(D_IN, D_SAE)} | changes  # fmt: skip


def evil_files(mark: Path) -> dict[str, bytes]:
    """Files that make `mark` when they are unpickled without care."""
    found = {f"pickle {p}": pickle.dumps({"pre_bias": Evil(mark)}, protocol=p) for p in range(6)}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(state(evil=Evil(mark)), buffer, _use_new_zipfile_serialization=new)
        found[f"torch {new}"] = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "storages", "tensors", "pickle", "../../../" + mark.name):
            info, data = tarfile.TarInfo(name), pickle.dumps(Evil(mark))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found["tar"] = buffer.getvalue()
    behind = io.BytesIO()
    with zipfile.ZipFile(behind, "w") as archive:
        archive.writestr("x", "")
    found["tar and zip"] = buffer.getvalue() + behind.getvalue()
    return found


def test_the_evil_files_are_evil(tmp_path):
    """What is refused below does harm where pickles are trusted."""
    pickle.loads(evil_files(tmp_path / "mark")["pickle 2"])["pre_bias"].close()
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", evil_files(Path("x")))
@pytest.mark.parametrize("name", ["autoencoder.pt", "ae.pt"])
def test_no_pickle_is_run(tmp_path, kind, name):
    mark = tmp_path / "mark"
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / name).write_bytes(evil_files(mark)[kind])
    (tmp_path / "sae" / "config.json").write_text(
        json.dumps({"trainer": {"dict_class": "AutoEncoder", "activation_dim": 4, "dict_size": 8}})
    )
    with pytest.raises(SaeError, match=rf"{name} (is no file of tensors|cannot be read)"):
        load_sae(tmp_path / "sae")
    assert not mark.exists()
    assert not (tmp_path / "sae" / "mark").exists()


def test_no_pickle_in_an_archive_is_run(tmp_path):
    mark = tmp_path / "mark"
    np.savez(tmp_path / "params.npz", w_enc=np.array([Evil(mark)], dtype=object))
    with pytest.raises(SaeError, match="Object arrays cannot be loaded"):
        load_sae(tmp_path)
    assert not mark.exists()


NO_PLAIN_TENSORS = {
    "a number repeated to a matrix": lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
    "a number repeated to the right shape": lambda: torch.ones(1).expand(D_SAE, D_IN),
    "no data": lambda: torch.empty(D_SAE, D_IN, device="meta"),
    "compressed rows": lambda: torch.eye(D_SAE, D_IN).to_sparse_csr(),
    "coordinates": lambda: torch.eye(D_SAE, D_IN).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(D_SAE, D_IN)]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, about kinds of tensors that are new
@pytest.mark.parametrize("what", NO_PLAIN_TENSORS)
def test_tensors_that_are_not_what_is_stored_of_them_are_refused(tmp_path, what):
    torch.save(state(**{"encoder.weight": NO_PLAIN_TENSORS[what]()}), tmp_path / "a.pt")
    with pytest.raises(SaeError, match=r"encoder\.weight is sparse, nested, without data or larger than what is stored"):
        load_sae(tmp_path / "a.pt")


VALUES = [
    None,
    3,
    "TopK",
    [[[]]],
    {},
    {"k": 3},
    {"k": [1]},
    {"k": torch.tensor(3)},
    torch.zeros(2),
    {"k": 3, "postact_fn": torch.zeros(2)},
    1e400,
]


@pytest.mark.parametrize("key", ["activation", "activation_state_dict", "pre_bias", "encoder.weight"])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_wrong_values_in_a_state_are_refused(tmp_path, key, value):
    torch.save(state(**{"activation": "TopK", "activation_state_dict": {"k": 3}, key: value}), tmp_path / "a.pt")
    read_or_refuse(tmp_path / "a.pt")


@hostile
@given(st.data())
def test_any_flipped_bytes_of_a_pickle_are_read_or_refused(tmp_path, data):
    new = data.draw(st.booleans())
    torch.save(state(), tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    content = bytearray((tmp_path / "a.pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 300) | st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.pt").write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    read_or_refuse(tmp_path / "a.pt")


# ---- nothing is written elsewhere --------------------------------------------------------------------------------------

WATCHED = """
import sys, torch, numpy
from pathlib import Path
from sae_explore.errors import ExploreError
from sae_explore.saes.sae_formats import load_sae
seen = []
WRITING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree", "os.system", "subprocess.Popen",
           "os.exec", "os.posix_spawn", "socket.connect"}
def hook(event, args):
    if event in WRITING or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        seen.append((event, str(args[0])))
sys.addaudithook(hook)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_sae(next(folder.glob("*.pt"), folder))
        seen.append(("read", folder.name))
    except ExploreError:
        pass
print(seen)
"""  # fmt: skip


def test_reading_hostile_files_writes_nothing_and_starts_nothing(tmp_path):
    """As the interpreter itself tells it: no file opened for writing, made, moved or removed, no process, no connection."""
    for i, data in enumerate(evil_files(tmp_path / "mark").values()):
        (tmp_path / "all" / f"pt{i}").mkdir(parents=True)
        (tmp_path / "all" / f"pt{i}" / "x.pt").write_bytes(data)
    (tmp_path / "all" / "npz").mkdir()
    np.savez(tmp_path / "all" / "npz" / "params.npz", w_enc=np.array([Evil(tmp_path / "mark")], dtype=object))
    done = subprocess.run([sys.executable, "-B", "-c", WATCHED, str(tmp_path / "all")], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).resolve().parents[1])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "spec", ["../../nowhere", "me/../..:x", "me/sae:../x", "me/sae:/etc", "CON", "\ud800", "a\0b", "\u202e/x", "x" * 5000, "~nobody/x"]
)
def test_names_of_saes_that_are_none(spec, monkeypatch):
    from sae_explore.saes.sae_sources import resolve_sae

    monkeypatch.setattr("sae_explore.saes.sae_sources._cached", lambda *_: pytest.fail("was looked for"))
    with pytest.raises(InputError, match=r"there is no SAE folder|is not understood") as caught:
        resolve_sae(spec)
    assert len(str(caught.value)) < 400 or spec.startswith("x")


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2), (1, (1 << 24) + 1)])
def test_what_cannot_be_the_matrix_of_an_sae(shape):
    with pytest.raises(SaeError, match=r"x: W has shape .*, expected a matrix"):
        sae_files.matrix_sides("x", "W", torch.zeros(1).expand(shape) if 0 not in shape else torch.zeros(shape))
