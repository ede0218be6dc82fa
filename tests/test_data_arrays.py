"""Samples that are arrays: files and directories, what they are made from, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest
from test_cli import refused

from fewstep.artifact.signature import ArrayInput, ArrayOutput, LabelInput
from fewstep.data.arrays import is_arrays, open_arrays
from fewstep.trainer.batches import Loader, open_examples
from fewstep.trainer.draws import Draws

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
ABOUT = {
    "axes": [{"name": "time", "unit": "0.1 s"}],
    "columns": [{"name": "x", "unit": "m"}, {"name": "y"}],
    "classes": ["push", "pull"],
    "null": {"observation": "zeros"},
}


def paths(count: int = 20) -> dict[str, Array]:
    """Walks of eight steps in the plane, of two kinds, each with what was seen before it."""
    values = RNG.normal((3.0, -1000.0), (2.0, 50.0), (count, 8, 2)).astype(np.float32)
    return {"values": values, "labels": np.arange(count) % 2, "observation": RNG.normal(size=(count, 5))}


def npz(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def parquet(path: Path, **arrays: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({name: array.tolist() for name, array in arrays.items()}), path)
    return path


def test_a_file_says_what_samples_are_and_what_they_are_made_from(tmp_path: Path) -> None:
    given = paths()
    samples = open_arrays(npz(tmp_path / "walks.npz", **given))
    output = samples.signature.output
    assert isinstance(output, ArrayOutput)
    assert (output.shape, samples.state.shape) == ((2, 8), (2, 8))
    assert [axis.name for axis in output.axes] == ["axis_0"]
    assert [column.name for column in output.columns] == ["column_0", "column_1"]
    assert samples.signature.inputs == (LabelInput(classes=2), ArrayInput(name="observation", shape=(5,)))
    assert len(samples) == 16  # every fifth of a class is held out
    assert len(open_arrays(tmp_path / "walks.npz", "held-out")) == 4
    assert samples.labels.tolist() == samples.index.tolist()  # rows of what they are made from
    np.testing.assert_array_equal(samples.arrays["observation"], given["observation"])


def test_columns_are_freed_of_mean_and_deviation_of_the_training_split(tmp_path: Path) -> None:
    given = paths()
    held_out = open_arrays(npz(tmp_path / "walks.npz", **given), "held-out").index
    given["values"][held_out] += 1e6
    samples = open_arrays(npz(tmp_path / "walks.npz", **given))
    columns = samples.signature.output.columns  # type: ignore[union-attr]
    train = given["values"][samples.index].astype(np.float64)
    np.testing.assert_allclose([c.mean for c in columns], train.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose([c.std for c in columns], train.std((0, 1)), rtol=1e-6)
    every = samples[np.arange(len(samples))][0]
    assert every.shape == (16, 2, 8)
    assert every.dtype == np.float32
    np.testing.assert_allclose(every.mean((0, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(every.std((0, 2)), 1, atol=1e-3)
    back = samples.signature.output.scaling.of(every)
    np.testing.assert_allclose(back, given["values"][samples.index], rtol=1e-4, atol=1e-4)


def test_a_column_that_is_constant_stays_as_it_is(tmp_path: Path) -> None:
    values = paths()["values"]
    values[..., 1] = 0.1  # whose mean is not exactly itself
    samples = open_arrays(npz(tmp_path / "walks.npz", values=values))
    assert samples.signature.output.columns[1].std == 1.0  # type: ignore[union-attr]
    assert not samples[np.arange(16)][0][:, 1].any()


def test_names_units_classes_and_what_means_none_lie_beside_a_file(tmp_path: Path) -> None:
    npz(tmp_path / "walks.npz", **paths())
    (tmp_path / "walks.json").write_text(json.dumps(ABOUT))
    samples = open_arrays(tmp_path / "walks.npz")
    output = samples.signature.output
    assert output.about == "8 time (0.1 s), columns x (m), y"
    named, seen = LabelInput(classes=2, names=("push", "pull")), ArrayInput(name="observation", shape=(5,), null="zeros")
    assert samples.signature.inputs == (named, seen)
    assert samples.names == ("push", "pull")
    assert samples.signature.guidable
    assert samples.notes[0].startswith(f"{tmp_path / 'walks.npz'}: 20 samples of time 8 x 2 columns, made from labels: 0 to 1")
    assert "observation: observation, finite, zeros for none" in samples.notes[0]


@pytest.mark.parametrize("kind", ["npz", "parquet", "both"])
def test_a_directory_is_one_data_set(kind: str, tmp_path: Path) -> None:
    given = paths()
    root, halves = (
        tmp_path / "data",
        [{name: array[part] for name, array in given.items()} for part in (slice(7), slice(7, 20))],
    )
    for i, half in enumerate(halves):
        write = npz if kind == "npz" or (kind == "both" and i) else parquet
        write(root / f"{i}.{'npz' if write is npz else 'parquet'}", **half)
    (root / "signature.json").write_text(json.dumps(ABOUT))
    (root / ".hidden").write_text("x")
    whole = open_arrays(npz(tmp_path / "walks.npz", **given))
    found = open_arrays(root)
    assert is_arrays(root)
    assert len(found.notes) == 1
    assert found.signature.output.about == "8 time (0.1 s), columns x (m), y"
    np.testing.assert_array_equal(found[np.arange(16)][0], whole[np.arange(16)][0])
    np.testing.assert_array_equal(found.arrays["observation"], given["observation"])
    assert found.labels.tolist() == whole.labels.tolist()
    (root / "0.json").write_text("{}")
    assert open_arrays(root).notes[1] == "not read: 0.json; what arrays are is said in signature.json"


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
def test_every_kind_of_list_in_parquet_is_an_array(kind: str, tmp_path: Path) -> None:
    made = {"list": pyarrow.list_, "large_list": pyarrow.large_list, "fixed": lambda of: pyarrow.list_(of, 2)}[kind]
    outer = pyarrow.list_(made(pyarrow.float32()), 3) if kind == "fixed" else made(made(pyarrow.float32()))
    values = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
    table = pyarrow.table({"values": pyarrow.array(values.tolist(), outer), "step": pyarrow.array(range(10), pyarrow.int16())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    samples = open_arrays(tmp_path / "a.parquet", "all")
    np.testing.assert_allclose(samples.signature.output.scaling.of(samples[np.arange(10)][0]), values, atol=1e-4)
    assert samples.signature.inputs == (ArrayInput(name="step", shape=()),)
    assert samples.arrays["step"].tolist() == list(range(10))


def test_without_arrays_labels_are_classes_and_without_labels_there_is_nothing_to_tell(tmp_path: Path) -> None:
    given = paths()
    classes = open_arrays(npz(tmp_path / "a.npz", values=given["values"], labels=given["labels"]))
    assert classes.signature.inputs == (LabelInput(classes=2),)
    assert set(classes.labels.tolist()) == {0, 1}
    assert classes.arrays == {}
    alone = open_arrays(npz(tmp_path / "b.npz", values=given["values"], labels=np.zeros(20, int)))
    assert alone.signature.inputs == open_arrays(npz(tmp_path / "c.npz", values=given["values"])).signature.inputs == ()


def test_several_inputs_are_in_the_order_of_their_names_with_classes_first(tmp_path: Path) -> None:
    given = paths()
    more = {"zoom": np.ones(20, np.int32), "aim": np.ones((20, 3, 4), np.float16)}
    samples = open_arrays(npz(tmp_path / "a.npz", **given, **more))
    assert [each.name for each in samples.signature.inputs] == ["labels", "aim", "observation", "zoom"]
    assert [each.tensor.shape for each in samples.signature.inputs] == [(), (3, 4), (5,), ()]


def test_a_batch_has_the_rows_of_its_samples(tmp_path: Path) -> None:
    from fewstep.data.conditions import Conditions

    given = paths()
    given["observation"] = given["values"][:, 0]  # what a sample is made from is its own beginning
    samples = open_arrays(npz(tmp_path / "a.npz", **given))
    states, labels = Loader(samples)(Draws(0, 0, 8))
    kinds, seen = Conditions(samples.signature.inputs, samples.arrays).of(labels)
    values = samples.signature.output.scaling.of(states.numpy())
    np.testing.assert_allclose(values[:, 0], seen.numpy(), rtol=1e-4)
    assert kinds.tolist() == given["labels"][labels].tolist()


def test_the_hash_tells_arrays_apart(tmp_path: Path) -> None:
    given = paths()
    known = [open_arrays(npz(tmp_path / "a.npz", **given)).sha256, open_arrays(tmp_path / "a.npz", "all").sha256]
    assert known[0] == known[1]
    others = [given | {"values": given["values"] + 1}, given | {"labels": 1 - given["labels"]}]
    others += [given | {"observation": given["observation"][::-1]}, given | {"values": given["values"].reshape(20, 4, 4)}]
    known += [open_arrays(npz(tmp_path / "a.npz", **other)).sha256 for other in others]
    (tmp_path / "a.json").write_text(json.dumps({"columns": [{"name": c} for c in "abcd"]}))
    known.append(open_arrays(tmp_path / "a.npz").sha256)
    assert len(set(known)) == len(known) - 1


def test_what_is_read_elsewhere_takes_the_place_of_a_class_alone(tmp_path: Path) -> None:
    given, told = paths(), (ArrayInput(name="prompt_embeds", shape=(3, 4), null="given"),)
    samples = open_examples(str(npz(tmp_path / "a.npz", values=given["values"], labels=given["labels"])), inputs=told)
    assert samples.signature.inputs == told
    assert set(samples.labels.tolist()) == {0, 1}  # rows of what is given
    whole = str(npz(tmp_path / "b.npz", **given))
    with pytest.raises(ValueError, match="has what its samples are made from; leave --inputs out"):
        open_examples(whole, inputs=told)
    with pytest.raises(ValueError, match="holds arrays, whose size is what it is; leave --resolution out"):
        open_examples(whole, resolution=8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"values": None}, "has no array called values, it has labels, observation; samples have that name"),
        ({"values": np.zeros((20, 8))}, r"values are numbers (N, *axes, columns), with one axis or more, got float64 (20, 8)"),
        ({"values": np.zeros((0, 8, 2))}, "got float64 (0, 8, 2)"),
        ({"values": np.zeros((20, 8, 2), bool)}, "got bool (20, 8, 2)"),
        ({"values": np.zeros((20, 1, 1, 1, 1, 1, 1, 1, 2))}, "values cannot be an output"),
        ({"labels": np.arange(19)}, "has 20 values, and labels has shape (19,); give a row for each"),
        ({"labels": np.zeros(20)}, "labels are whole numbers from 0, one for each sample, got float64 (20,)"),
        ({"labels": np.zeros((20, 1), int)}, "labels are whole numbers from 0, one for each sample, got int64 (20, 1)"),
        ({"labels": np.arange(20) - 1}, "labels has -1, which is none of the classes"),
        ({"labels": np.arange(20) + 10**12}, "labels has 1000000000000, which is none of the classes 0 to 1048575"),
        ({"observation": np.zeros((3, 5))}, "and observation has shape (3, 5); give a row for each"),
        ({"observation": np.array(["a"] * 20)}, "the array observation holds numbers, got <U1"),
        ({"observation": np.zeros((20, 0))}, "the array observation cannot be an input"),
        ({"Observation": np.zeros((20, 2))}, "the array Observation cannot be an input: name: String should match"),
        ({"noise": np.zeros((20, 2))}, "got 'noise'; choose another"),
        ({"values_": np.array([object()] * 20)}, "a.npz is not readable"),
        (
            {"negative_observation": np.zeros((20, 5))},
            "is no name of an input, but of what means none; give both with --inputs",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arrays_that_do_not_go_together_are_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    given = {name: array for name, array in (paths() | change).items() if array is not None}
    npz(tmp_path / "a.npz", **given)
    assert sentence in refused("train", "--data", "a.npz", "--out", "a.bundle", cwd=tmp_path)
    assert not (tmp_path / "a.bundle").exists()


def test_numbers_that_are_not_finite_are_counted_and_named_by_their_row(tmp_path: Path) -> None:
    given = paths()
    given["values"][[7, 9], 3, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="values of 2 samples are not finite, the first is row 7"):
        open_arrays(npz(tmp_path / "a.npz", **given))
    given = paths()
    given["observation"][12, 4] = -np.inf
    with pytest.raises(ValueError, match="observation of 1 samples are not finite, the first is row 12"):
        open_arrays(npz(tmp_path / "a.npz", **given))
    with pytest.raises(ValueError, match="values of 1 samples are not finite, the first is row 1"):  # in float32
        open_arrays(npz(tmp_path / "a.npz", values=np.array([1.0, 1e300, 2.0, 3.0, 4.0]).reshape(5, 1, 1)))


def test_files_of_a_directory_agree(tmp_path: Path) -> None:
    root, given = tmp_path / "data", paths()
    npz(root / "a.npz", **given)
    npz(root / "b.npz", **given | {"values": np.zeros((20, 9, 2))})
    with pytest.raises(ValueError, match=r"the files of .*data do not go together"):
        open_arrays(root)
    npz(root / "b.npz", values=given["values"])
    with pytest.raises(ValueError, match=r"b.npz has other arrays than a.npz; put them into directories of their own"):
        open_arrays(root)
    npz(root / "b.npz", other=given["values"])
    with pytest.raises(ValueError, match=r"b.npz has no array called values, it has other"):
        open_arrays(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no files of arrays; give .npz or .parquet"):
        open_arrays(tmp_path / "empty")


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"null": {"sight": "zeros"}}, "null is said of sight, and no input is an array of that name; leave it out"),
        ({"null": {"labels": "zeros"}}, "null is said of labels, and no input is an array of that name"),
        ({"null": {"observation": "ones"}}, "does not say what arrays are: null.observation: Input should be 'zeros'"),
        ({"axes": [{"name": "a"}, {"name": "b"}]}, "values have 1 axes and 2 columns, and 2 and 2 are named"),
        ({"columns": [{"name": "a"}]}, "values have 1 axes and 2 columns, and 1 and 1 are named"),
        ({"axes": [{"name": "Zeit"}]}, "values cannot be an output: name: String should match"),
        ({"classes": ["one"]}, "labels has 1, which is none of the classes 0 to 0"),
        ({"classes": ["a", "a"]}, "a.npz: "),
        ({"units": []}, "does not say what arrays are: units: Extra inputs are not permitted"),
        ([], "does not say what arrays are"),
    ],
    ids=str,
)
def test_what_is_said_of_arrays_fits_them(about: Any, sentence: str, tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", **paths())
    (tmp_path / "a.json").write_text(json.dumps(about))
    assert sentence in refused("train", "--data", "a.npz", "--out", "a.bundle", cwd=tmp_path)


def test_classes_without_labels_are_refused(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", values=paths()["values"])
    (tmp_path / "a.json").write_text(json.dumps({"classes": ["push", "pull"]}))
    with pytest.raises(ValueError, match="classes are named, and there is no array labels that says which ones; add it"):
        open_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([[[1.0], [2.0]], [[3.0]]], r"a.parquet has a column that is no array \(its lists have several lengths\)"),
        ([[[1.0], [2.0]], [[3.0], None]], r"a.parquet has a column that is no array \(its lists have several lengths\)"),
        ([[[1.0], [2.0]], [[3.0], [None]]], r"a.parquet has a column that is no array \(it has rows without a number\)"),
        ([[[1.0], [2.0]], None], r"a.parquet has a column that is no array"),
        ([[["a"]], [["b"]]], r"values are numbers .* got object"),
        ([{"x": 1.0}, {"x": 2.0}], r"a.parquet has a column that is no array|values are numbers"),
    ],
    ids=str,
)
def test_lists_that_are_no_array_are_refused(values: Any, sentence: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"values": values}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=sentence):
        open_arrays(tmp_path / "a.parquet")


def test_bytes_that_are_no_file_of_arrays_are_refused(tmp_path: Path) -> None:
    for name in ("a.npz", "a.parquet"):
        (tmp_path / name).write_bytes(b"no arrays")
        with pytest.raises(ValueError, match=f"{name} is not readable"):
            open_arrays(tmp_path / name)
    whole = npz(tmp_path / "b.npz", **paths()).read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b.npz is not readable"):
        open_arrays(tmp_path / "b.npz")
