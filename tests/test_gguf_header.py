"""The GGUF header is read as the gguf package reads it, only faster, and damage is found."""

from __future__ import annotations

import itertools

import pytest

from llmquant.errors import ModelError
from llmquant.models.gguf import _BLOCKS, read_gguf_header


def test_tensors_are_those_the_gguf_package_reads(tiny_gguf):
    """Names, shapes and types equal the reference reader's."""
    import gguf

    expected = [
        (tensor.name, tuple(int(n) for n in reversed(tensor.shape)), tensor.tensor_type)
        for tensor in gguf.GGUFReader(tiny_gguf).tensors
    ]
    found = [(tensor.name, tensor.shape, _type_id(tensor.dtype)) for tensor in read_gguf_header(tiny_gguf).tensors]
    assert found == expected


def _type_id(name):
    return next(number for number, block in _BLOCKS.items() if block[0] == name)


def test_metadata_is_what_the_gguf_package_reads(tiny_gguf):
    """Scalars and texts equal the reference reader's; of long arrays the length is kept."""
    import gguf

    found = read_gguf_header(tiny_gguf).metadata
    expected = {key: field.contents() for key, field in gguf.GGUFReader(tiny_gguf).fields.items() if "GGUF." not in key}
    assert found == {key: len(value) if isinstance(value, list) else value for key, value in expected.items()}


def test_block_sizes_are_those_of_the_gguf_package():
    """Every type that both know has the same block."""
    from gguf.constants import GGML_QUANT_SIZES

    for kind, sizes in GGML_QUANT_SIZES.items():
        if int(kind) in _BLOCKS:
            assert _BLOCKS[int(kind)][1:] == sizes


def test_a_file_cut_anywhere_is_refused(tiny_gguf, tmp_path):
    """Wherever a download stops, the error is clear and no other exception escapes."""
    whole = tiny_gguf.read_bytes()
    part = tmp_path / "part.gguf"
    for length in itertools.chain(range(0, 200), range(200, len(whole), 997), [len(whole) - 1]):
        part.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_gguf_header(part)
