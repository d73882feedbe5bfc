from __future__ import annotations

import pytest
import torch

from pvopt.formats.native import pack, packed_size, unpack

# Sizes around a byte's worth of codes and around the pieces that are converted at once.
SIZES = (0, 1, 2, 7, 8, 9, 63, 1001, (1 << 17) - 1, 1 << 17, (1 << 17) + 3)


@pytest.mark.parametrize("bits", range(1, 32))
def test_every_width_and_odd_sizes_round_trip_in_exactly_the_bytes_needed(bits):
    generator = torch.Generator().manual_seed(bits)
    for size in SIZES:
        codes = torch.randint(0, 1 << bits, (size,), generator=generator)
        codes[-1:] = (1 << bits) - 1  # the highest bit of the last code must survive
        packed = pack(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.shape == ((size * bits + 7) // 8,) == (packed_size(size, bits),)
        assert torch.equal(unpack(packed, bits, size, torch.int64), codes)


@pytest.mark.parametrize("bits", [1, 3, 8, 11, 16, 31])
def test_stream_is_the_documented_one(bits):
    codes = torch.randint(0, 1 << bits, (41,), generator=torch.Generator().manual_seed(0)).tolist()
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    expected = number.to_bytes((41 * bits + 7) // 8, "little")
    assert bytes(pack(torch.tensor(codes), bits).tolist()) == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_dtypes_and_shapes(dtype):
    codes = torch.arange(24, dtype=dtype).view(2, 3, 4).transpose(0, 2)
    found = unpack(pack(codes, 5), 5, 24, dtype)
    assert found.dtype == dtype
    assert torch.equal(found.view(4, 3, 2), codes)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.7 to fit 3 bits, got 0\.\.8"):
        pack(torch.tensor([0, 8]), 3)
    with pytest.raises(ValueError, match=r"got -1\.\.2"):
        pack(torch.tensor([-1, 2]), 3)
    for bits in (0, 32):
        with pytest.raises(ValueError, match=r"bits must be in 1\.\.31"):
            pack(torch.tensor([0]), bits)
    with pytest.raises(TypeError, match="integers"):
        pack(torch.tensor([0.0]), 3)
    with pytest.raises(ValueError, match=r"shape \[2\] for 5 codes of 3 bits"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 5)
    with pytest.raises(TypeError, match="uint8"):
        unpack(torch.zeros(2, dtype=torch.int32), 3, 5)
    with pytest.raises(ValueError, match="hold 9 bits"):
        unpack(torch.zeros(9, dtype=torch.uint8), 9, 8, torch.uint8)
