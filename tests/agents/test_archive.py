import pytest
import torch

from ssm_metarl_gym.agents.archive import read_archive, write_archive

FORMAT = {"version": 3, "written_by": "Something.save"}
STATE = {"first": torch.tensor([1.0, -2.0]), "second": torch.arange(3), "text": "hello", "numbers": [1, 2.5, None]}


@pytest.fixture
def path(tmp_path):
    write_archive(tmp_path / "trainer.pt", STATE, 3)
    return tmp_path / "trainer.pt"


def is_state(state):
    """Whether this is STATE, bit for bit."""
    tensors = all(
        state[name].dtype == STATE[name].dtype and torch.equal(state[name], STATE[name]) for name in ("first", "second")
    )
    return tensors and {k: state[k] for k in ("text", "numbers")} == {k: STATE[k] for k in ("text", "numbers")}


def test_what_was_written_is_read(path):
    assert is_state(read_archive(path, path, STATE, **FORMAT))
    with path.open("rb") as file:
        assert is_state(read_archive(file, "the file", STATE, **FORMAT))


def test_what_lacks_a_name_is_another_file(path):
    with pytest.raises(ValueError, match=r"it must be a file written by Something\.save in format 3"):
        read_archive(path, "it", [*STATE, "third"], **FORMAT)


@pytest.mark.parametrize(("other", "hint"), [(2, " It was written by an earlier version"), (4, ""), ("other", "")])
def test_another_format_is_another_file(path, other, hint):
    write_archive(path, STATE, other)
    with pytest.raises(ValueError, match=rf"in format 3; it is not\.{hint}"):
        read_archive(path, "it", STATE, **FORMAT)


@pytest.mark.slow
def test_a_flipped_bit_is_found_or_is_of_no_consequence_wherever_it_is(path):
    """Not only in what the checksums are of: torch trusts every field of every header, too."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):  # each bit of a byte in turn; all of them take too long
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            state = read_archive(path, "it", STATE, **FORMAT)
        except ValueError:
            continue
        assert is_state(state), bit


def test_a_tensor_that_is_marked_as_a_folder_is_read_all_the_same(path):
    """Of all bits this is the one that torch alone would get wrong: it leaves the numbers as the memory holds them."""
    whole = path.read_bytes()
    start, num_marked = -1, 0
    while (start := whole.find(b"PK\x01\x02", start + 1)) >= 0:
        damaged = bytearray(whole)
        damaged[start + 38] |= 0x10
        path.write_bytes(damaged)
        assert is_state(read_archive(path, "it", STATE, **FORMAT))
        num_marked += 1
    assert num_marked > 3
