"""Tensor files against the safetensors library, both ways; damaged files always end in BundleError."""

import errno
import json
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sae_explore.errors import BundleError
from sae_explore.files.tensor_file import TensorWriter, read_tensors, write_tensors

KINDS = (np.int64, np.int32, np.uint32, np.uint16, np.uint8, np.float16, np.float32, np.bool_)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {f"kind.{np.dtype(k).name}": (100 * rng.random((3, 5))).astype(k) for k in KINDS}
    return found | {
        "empty": np.zeros((0, 7), np.float16),
        "one": np.array(5, np.int64),
        "odd": np.arange(3, dtype=np.uint8),
        "ünï": np.ones(2, np.float32),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)


def test_the_library_reads_what_is_written(tmp_path):
    write_tensors(tmp_path / "a", arrays())
    assert_same(load_file(tmp_path / "a"), arrays())


def test_what_the_library_writes_is_read(tmp_path):
    save_file(arrays(), tmp_path / "a", metadata={"format": "np"})
    assert_same(read_tensors(tmp_path / "a"), arrays())


def test_read_arrays_are_read_only_maps(tmp_path):
    write_tensors(tmp_path / "a", arrays())
    tensors = read_tensors(tmp_path / "a")
    found = tensors["kind.float32"]
    assert {type(array.base) for array in tensors.values() if array.size} == {mmap.mmap}
    assert len({id(array.base) for array in tensors.values() if array.size}) == 1  # one open file
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    write_tensors(tmp_path / "a", {"x": np.arange(4)})

    def interrupted():
        with TensorWriter(tmp_path / "a", {"x": (np.int64, (4,))}) as out:
            out.map("x")[:] = 9
            assert read_tensors(tmp_path / "a")["x"].tolist() == [0, 1, 2, 3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_tensors(tmp_path / "a")["x"].tolist() == [0, 1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(_descriptor, _offset, _length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a", {"x": np.arange(4)})
    assert list(tmp_path.iterdir()) == []


def test_file_systems_that_cannot_reserve_space_are_written_all_the_same(tmp_path, monkeypatch):
    def unable(_descriptor, _offset, _length):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", unable)
    write_tensors(tmp_path / "a", {"x": np.arange(4)})
    assert read_tensors(tmp_path / "a")["x"].tolist() == [0, 1, 2, 3]


def test_equal_contents_make_equal_files(tmp_path):
    for name in "ab":
        write_tensors(tmp_path / name, arrays())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def with_header(path, header: bytes, data: bytes = bytes(64)):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype="I64", shape=(2,), offsets=(0, 16), **more) -> bytes:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}).encode()


DAMAGED = {
    "no JSON": b"{nope",
    "not utf-8": b'{"\xff": 1}',
    "a list": b"[1, 2]",
    "a number": b"12",
    "an entry that is a number": b'{"x": 3}',
    "an entry that is a list": b'{"x": []}',
    "an entry without offsets": b'{"x": {"dtype": "I64", "shape": [2]}}',
    "an unknown type": entry("I63"),
    "a type that is a list": b'{"x": {"dtype": ["I64"], "shape": [2], "data_offsets": [0, 16]}}',
    "a shape that is no list": entry(shape=2),
    "a shape of text": entry(shape="2"),
    "a shape of a fraction": entry(shape=[2.0]),
    "a shape of a truth": entry(shape=[True, 2]),
    "an infinite shape": b'{"x": {"dtype": "I64", "shape": [1e999], "data_offsets": [0, 16]}}',
    "a negative shape": entry(shape=[-2], offsets=[16, 0]),
    "two negative sides": entry(shape=[-1, -2]),
    "a negative start": entry(offsets=[-8, 8]),
    "offsets beyond the file": entry(offsets=[56, 72]),
    "offsets that do not fit the shape": entry(offsets=[0, 8]),
    "three offsets": entry(offsets=[0, 8, 16]),
    "an empty tensor with a side beyond measure": entry(shape=[0, 10**30], offsets=[0, 0]),
    "two empty sides beyond measure": entry(shape=[0, 2**39, 2**39], offsets=[0, 0]),
    "too many dimensions": entry("U8", shape=[1] * 70, offsets=[0, 1]),
    "a number too long to read": b'{"x": {"dtype": "I64", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 16]}}',
    "brackets without end": b"[" * 200_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_headers_are_refused_in_one_sentence(tmp_path, damage):
    with pytest.raises(BundleError) as caught:
        read_tensors(with_header(tmp_path / "a", DAMAGED[damage]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"1234567", bytes(8), (10**15).to_bytes(8, "little") + b"{}", (3).to_bytes(8, "little") + b"{}"])
def test_files_without_a_whole_header_are_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        read_tensors(tmp_path / "a")


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BundleError, match="cannot be read"):
            read_tensors(path)


def test_a_file_cut_short_is_refused(tmp_path):
    write_tensors(tmp_path / "a", arrays())
    data = (tmp_path / "a").read_bytes()
    for size in range(0, len(data), 7):
        (tmp_path / "a").write_bytes(data[:size])
        with pytest.raises(BundleError):
            read_tensors(tmp_path / "a")


def read_or_refuse(path) -> dict[str, np.ndarray]:
    """The tensors; none if the file was refused in one sentence. Any other error is passed on."""
    try:
        return read_tensors(path)
    except BundleError as error:
        return {} if "\n" not in str(error) else pytest.fail(str(error))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.sampled_from(["I64", "F16", "U8"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
near_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["I64", "F32", "BOOL", "U8"]) | json_values,
        "shape": st.lists(st.integers(-3, 2**65), max_size=40) | json_values,
        "data_offsets": st.lists(st.integers(-3, 2**65), min_size=2, max_size=2) | json_values,
    }
)


@given(st.dictionaries(st.text(max_size=5), near_entries | json_values, max_size=3) | json_values)
def test_any_header_is_read_or_refused(tmp_path, header):
    for array in read_or_refuse(with_header(tmp_path / "a", json.dumps(header).encode())).values():
        assert array.nbytes <= 64  # whatever was accepted lies within the file
        array.sum()


@given(st.data())
def test_any_flipped_bytes_are_read_or_refused(tmp_path, data):
    write_tensors(tmp_path / "a", {"x": np.arange(4), "name": np.ones((2, 3), np.float16)})
    content = bytearray((tmp_path / "a").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "b").write_bytes(content)
    read_or_refuse(tmp_path / "b")
