import numpy as np
import pytest

from ssm_metarl_gym.wrappers.infos import split_infos

ALL = slice(None)


def split(infos, num_rows=2, memory=None):
    return split_infos(infos, ALL, num_rows, memory)


def test_columns_become_entries_and_numbers_are_pythons():
    rows = split({"a": np.arange(2), "b": np.float32([0.5, 1.5]), "c": np.array([[1, 2], [3, 4]])})
    assert [(row["a"], row["b"], row["c"].tolist()) for row in rows] == [(0, 0.5, [1, 2]), (1, 1.5, [3, 4])]
    assert {type(rows[0][name]) for name in "ab"} == {int, float}


def test_only_the_rows_asked_for_are_split():
    infos = {"a": np.arange(4), "_a": np.array([True, False, True, True]), "nested": {"b": np.arange(4) * 10}}
    rows = split_infos(infos, np.array([3, 1]), 2)
    assert rows == [{"a": 3, "nested": {"b": 30}}, {"nested": {"b": 10}}]


def test_infos_with_and_without_masks_mix():
    mask = np.array([True, False])
    infos = {"a": np.arange(2), "_a": np.ones(2, np.bool_), "b": np.arange(2), "c": np.arange(2), "_c": mask}
    assert split(infos) == [{"a": 0, "b": 0, "c": 0}, {"a": 1, "b": 1}]


def test_a_name_with_an_underscore_is_a_mask_only_beside_what_it_masks():
    assert split({"_odd": np.array([3, 4])}) == [{"_odd": 3}, {"_odd": 4}]


def test_single_values_and_mixed_lists_are_given_to_the_rows():
    rows = split({"mean": 3.0, "names": ["a", None], "none": None})
    assert rows == [{"mean": 3.0, "names": "a", "none": None}, {"mean": 3.0, "names": None, "none": None}]


@pytest.mark.parametrize("memory", [None, {}])
def test_nothing_is_shared(memory):
    infos = {"list": [[1], [2]], "one": {"x": np.zeros(2)}, "array": np.zeros((2, 1))}
    first, again = split(infos, memory=memory), split(infos, memory=memory)
    first[0]["list"].append(9)
    first[0]["one"]["x"] = 7
    first[0]["array"][:] = 7
    assert again[0]["list"] == [1]
    assert again[0]["one"] == {"x": 0.0}
    assert again[0]["array"].tolist() == [0.0]
    assert infos["array"].tolist() == [[0.0], [0.0]]


class TestMemory:
    """Nested infos seldom change: only the rows that do are split anew."""

    def test_rows_are_told_apart_by_every_bit_and_type(self):
        memory = {}
        columns = [[0.0, 1.0], [-0.0, 1.0], np.array([0, 1]), np.array([np.nan, 1.0], np.float32), [np.nan, 1.0]]
        for column in map(np.array, columns):
            rows = split({"nested": {"x": column}}, memory=memory)
            assert [repr(row["nested"]["x"]) for row in rows] == [repr(entry) for entry in column.tolist()]

    def test_columns_that_are_written_in_place_are_seen(self):
        column, memory = np.zeros(2), {}
        for i in range(3):
            column[0] = i
            assert split({"nested": {"x": column}}, memory=memory)[0] == {"nested": {"x": float(i)}}

    def test_read_only_columns_that_numpy_does_not_own_are_split(self):
        memory, read = {}, []
        for i in (0, 0, 1):
            column = np.frombuffer(bytes([i] * 16), np.int64)
            read.append(split({"nested": {"x": column}}, memory=memory)[1]["nested"]["x"])
        assert read == [0, 0, 0x0101010101010101]

    def test_other_names_and_other_kinds_of_columns_forget_it(self):
        memory = {}
        for nested in ({"x": np.arange(2)}, {"y": np.arange(2)}, {"x": np.array(["a", "b"])}, {"x": np.arange(2)}):
            expected = [{"nested": {name: column[i].item() for name, column in nested.items()}} for i in range(2)]
            assert split({"nested": nested}, memory=memory) == expected
