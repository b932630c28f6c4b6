"""NumPy archives of strangers (`params.npz`): read or refused in one sentence, and no array that is not in the file takes memory."""

import pickle
import zipfile

import numpy as np
import pytest
from hostile_checks import hostile, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.errors import SaeError
from sae_explore.saes import sae_files
from sae_explore.saes.sae_formats import load_sae

D_IN, D_SAE = 4, 8


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-len(header) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


MEMBERS = {
    "a shape of terabytes": npy("(1000000000000,)"),
    "a shape of gigabytes": npy("(3000000000,)", data=bytes(1 << 20)),
    "a shape beyond measure": npy("(9223372036854775807, 9223372036854775807)"),
    "a side below zero": npy("(-1,)"),
    "brackets": npy("(" * 4000),
    "records": npy("(1,)", "[('a', '<f4')]", bytes(4)),
    "objects": npy("(1,)", "'|O'", pickle.dumps([1])),
    "void": npy("(1,)", "'|V4'", bytes(4)),
    "words": npy("(1,)", "'<U4'", bytes(16)),
    "dates": npy("(1,)", "'<M8[s]'", bytes(8)),
    "the other byte order": npy("(1,)", "'>f4'", bytes(4)),
    "a type that is none": npy("(1,)", "'nope'", bytes(4)),
    "no array": b"hello",
    "nothing": b"",
    "half a header": npy("(1,)")[:20],
    "version 9": b"\x93NUMPY\x09\x00" + bytes(60),
}


@pytest.mark.parametrize("what", MEMBERS)
def test_hostile_arrays_are_refused(tmp_path, what):
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w_enc.npy", MEMBERS[what])
    assert read_or_refuse(tmp_path) is None


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(3000000000,)", "(100,)"])
def test_an_array_that_claims_more_than_its_part_of_the_file_is_refused_before_it_is_made(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w_enc.npy", npy(shape, data=bytes(16)))
        archive.writestr("b_enc.npy", npy("(250,)", data=bytes(1000)))  # so that all of them together hold more than one claims
    with pytest.raises(SaeError, match="'w_enc' is cut short"):
        load_sae(tmp_path)


def test_an_archive_that_unpacks_to_more_than_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "params.npz", w_enc=np.zeros(1 << 20, np.float32))
    assert (tmp_path / "params.npz").stat().st_size < 10_000
    monkeypatch.setattr(sae_files, "available_memory", lambda: (1 << 28) + (4 << 20))
    with pytest.raises(SaeError, match="unpacks to 4 MB, more than"):
        load_sae(tmp_path)


@hostile
@given(st.data())
def test_any_flipped_bytes_of_an_archive_are_read_or_refused(tmp_path, data):
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    shapes = {"w_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "w_dec": (D_SAE, D_IN), "b_dec": (D_IN,), "threshold": (D_SAE,)}
    save(tmp_path / "params.npz", **{name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    content = bytearray((tmp_path / "params.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 200) | st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "params.npz").write_bytes(content)
    read_or_refuse(tmp_path)
