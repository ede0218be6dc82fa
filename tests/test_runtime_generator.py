"""The runtime on the shipped digits: an image belongs to its seed and label, and bad input gets a sentence."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from overflowing import overflowing
from small_sampler import sampler_bundle

from fewstep.artifact.bundle import Bundle
from fewstep.backends.base import RunError
from fewstep.runtime import Generator
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.generator import Inputs
from fewstep.runtime.noise import noise

BUNDLE = Path(__file__).parent.parent / "examples" / "digits.bundle"
PLANS = [("sid1", "fp32"), ("sid1", "fp16"), ("sid2", "fp32"), ("sid2", "fp16")]


@pytest.fixture(scope="module", params=PLANS, ids="-".join)
def generator(request: pytest.FixtureRequest) -> Generator:
    plan, precision = request.param
    return Generator.open(BUNDLE, plan=plan, precision=precision, backend="cpu")


def test_an_image_does_not_depend_on_its_batch(generator: Generator) -> None:
    """fp32 bit for bit; in fp16 ONNX Runtime's CPU kernels round by batch size, which moves few pixels by one level."""
    levels, share = (0, 0.0) if generator.graph.endswith("fp32") else (1, 0.01)
    labels, seeds = [3, 1, 4, 1, 5, 9, 2, 6], [7, 2**64 - 1, 0, 5, 5, 11, 12, 13]
    together = generator(labels=labels, seeds=seeds).astype(int)
    assert together.shape == (8, 28, 28, 1)
    others = [generator(labels=labels[::-1], seeds=seeds[::-1])[::-1]]
    for size in (1, 3, 4):
        parts = [generator(labels=labels[i : i + size], seeds=seeds[i : i + size]) for i in range(0, 8, size)]
        others.append(np.concatenate(parts))
    for other in others:
        assert other.dtype == np.uint8
        assert np.abs(other - together).max() <= levels
        assert (other != together).mean() <= share


def test_seed_and_label_both_matter(generator: Generator) -> None:
    images = generator(labels=[3, 3, 4], seeds=[0, 1, 0]).astype(int)
    assert np.abs(images[0] - images[1]).mean() > 5
    assert np.abs(images[0] - images[2]).mean() > 5


def test_many_threads_get_the_images_of_one(generator: Generator) -> None:
    expected = [generator(labels=[i], seeds=[i]) for i in range(8)]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        results[i] = generator(labels=[i], seeds=[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_array_equal(results[i], expected[i])


def test_without_labels_the_images_have_no_class(generator: Generator) -> None:
    assert generator(seeds=[1, 2]).shape == (2, 28, 28, 1)


def test_the_default_plan_is_the_one_step_generator_in_fp32_on_a_cpu() -> None:
    generator = Generator.open(BUNDLE, backend="cpu")
    assert (generator.graph, generator.plan.nfe, generator.backend) == ("sid1.fp32", 1, "cpu")
    assert generator.reason.startswith("you asked for it; threads: ")


def test_the_backend_is_chosen_with_a_reason() -> None:
    generator = Generator.open(BUNDLE)
    if "CUDAExecutionProvider" in ort.get_available_providers():
        assert generator.backend in generator.reason or "CUDA" in generator.reason
    else:
        assert generator.backend == "cpu"
        assert "no engine of this plan" in generator.reason
        assert "no CUDAExecutionProvider; one comes with the extra gpu" in generator.reason


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([], [], "at least 1 sample, got 0"),
        ([10], [0], "0 to 9, got 10"),
        ([-1], [0], "0 to 9, got -1"),
        ([1, 2], [0], r"one per seed \(1\), got int64 of shape \(2,\)"),
        ([1.5], [0], r"whole numbers, one per seed \(1\), got float64"),
        ([1], [-1], "seed is a whole number from 0"),
        ([1], [2**64], "seed is a whole number from 0"),
        ([1], [0.5], "seed is a whole number from 0"),
        ([1], [True], "seed is a whole number from 0"),
        ([1], None, "list of whole numbers, one per sample, got NoneType"),
        ([1], 7, "list of whole numbers, one per sample, got int"),
    ],
)
def test_bad_input_is_refused_in_words(labels: list[int], seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generator.open(BUNDLE, backend="cpu")(labels=labels, seeds=seeds)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"plan": "sid9"}, "no plan 'sid9'; it has: .*sid1"),
        ({"plan": "table4"}, r"no graph of the plan 'table4' .*fewstep export"),
        ({"precision": "fp64"}, "precision is one of fp32, fp16, bf16, int8, int8-fp16, fp8, got 'fp64'"),
        ({"precision": "fp8"}, r"has no fp8 graph of the plan 'sid1' \(it has: fp16, fp32, int8, int8-fp16\)"),
        ({"backend": "tpu"}, "backend is one of tensorrt, cuda, onnxruntime-tensorrt, cpu, got 'tpu'"),
    ],
)
def test_what_the_bundle_or_machine_lacks_is_named(choice: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generator.open(BUNDLE, **choice)


def test_an_altered_graph_is_never_run(digits: Bundle) -> None:
    path = digits.root / digits.manifest.graphs["sid1.fp32"].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sid1.fp32.onnx does not match its sha256"):
        Generator.open(digits.root, backend="cpu")


def test_noise_belongs_to_the_seed_and_is_normal() -> None:
    together = noise([5, 6], (2, 64, 64))
    np.testing.assert_array_equal(noise([6], (2, 64, 64))[0], together[1])
    assert abs(together.mean()) < 0.03
    assert together.std() == pytest.approx(1, abs=0.03)
    # NumPy's Philox stream for key 5: a change here would change every user's images.
    np.testing.assert_array_equal(
        noise([5], (3,))[0], np.random.Generator(np.random.Philox(key=5)).standard_normal(3, np.float32)
    )


def test_importing_the_runtime_adds_little_to_importing_onnx_runtime() -> None:
    """Generous against other load; benchmarks/import_time.py measures. A torch import alone would take several seconds."""
    code = (
        "import time, onnxruntime; start = time.perf_counter(); import fewstep.runtime; print(time.perf_counter() - start)\n"
        "import sys; assert not {'torch', 'onnx', 'diffusers', 'rich', 'typer', 'PIL'} & set(sys.modules)"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) for _ in range(3)
    ]
    assert min(runs) < 1.5


def test_generating_into_an_array_fills_it_and_refuses_another(digits: Bundle) -> None:
    generator = Generator(digits, backend="cpu")
    out = np.zeros((2, 28, 28, 1), np.uint8)
    generator.generate_into(out, labels=[3, 1], seeds=[0, 1])
    np.testing.assert_array_equal(out, generator(labels=[3, 1], seeds=[0, 1]))
    torch = pytest.importorskip("torch")
    tensor = torch.zeros((2, 28, 28, 1), dtype=torch.uint8)
    generator.generate_into(tensor, labels=[3, 1], seeds=[0, 1])  # whatever speaks DLPack
    np.testing.assert_array_equal(tensor.numpy(), out)
    for wrong in (np.zeros((2, 28, 28), np.uint8), np.zeros((2, 28, 28, 1), np.int8)):
        with pytest.raises(ValueError, match=r"out is a writable uint8 array of shape \(2, 28, 28, 1\), got"):
            generator.generate_into(wrong, labels=[3, 1], seeds=[0, 1])


def test_a_large_batch_is_made_in_parts(digits: Bundle) -> None:
    small, large = Generator(digits, backend="cpu", buckets=(1, 2, 4)), Generator(digits, backend="cpu")
    labels, seeds = [i % 10 for i in range(11)], range(11)
    np.testing.assert_array_equal(small(labels=labels, seeds=seeds), large(labels=labels, seeds=seeds))
    assert list(small.warm_up()) == [1, 2, 4]


@pytest.mark.parametrize("buckets", [(), (0,), (2, 1), (1, 1)])
def test_buckets_that_are_none_are_refused(buckets: tuple[int, ...], digits: Bundle) -> None:
    with pytest.raises(ValueError, match="buckets are batch sizes of 1 or more, increasing"):
        Generator(digits, backend="cpu", buckets=buckets)


def test_a_sample_that_is_not_finite_is_reported_with_its_row(digits: Bundle) -> None:
    generator = Generator(overflowing(digits, "fp16"), plan="sid2", precision="fp16", backend="cpu")
    with pytest.raises(NotFiniteError, match=r"sid2.fp16 on cpu made numbers that are not finite \(from row 1 of 2 on\)"):
        generator(labels=[3], seeds=[0])


def test_a_sample_that_is_not_finite_is_made_again_in_fp32_where_that_was_asked_for(digits: Bundle) -> None:
    broken = overflowing(digits, "fp16")
    generator = Generator(broken, plan="sid2", precision="fp16", backend="cpu", on_nan="fp32")
    exact = Generator(broken, plan="sid2", precision="fp32", backend="cpu")
    for batch in (1, 3):
        labels, seeds = list(range(batch)), list(range(batch))
        np.testing.assert_array_equal(generator(labels=labels, seeds=seeds), exact(labels=labels, seeds=seeds))
    assert generator.rescued == 2


def test_what_makes_a_batch_again_is_opened_with_the_generator_or_it_is_refused(digits: Bundle) -> None:
    """The bundle on disk may be another, or gone, when a number stops being finite."""
    broken = overflowing(digits, "fp16")
    generator = Generator(broken, plan="sid2", precision="fp16", backend="cpu", on_nan="fp32")
    expected = Generator(broken, plan="sid2", precision="fp32", backend="cpu")(labels=[3], seeds=[0])
    path = broken.file(broken.manifest.graphs["sid2.fp32"].file)
    content = path.read_bytes()
    path.unlink()
    np.testing.assert_array_equal(generator(labels=[3], seeds=[0]), expected)
    with pytest.raises(ValueError, match=r"sid2\.fp32\.onnx"):
        Generator(broken, plan="sid2", precision="fp16", backend="cpu", on_nan="fp32")
    path.write_bytes(content)
    with broken.edit() as draft:
        draft.remove(broken.manifest.graphs["sid2.fp32"].file)
        del draft.manifest.graphs["sid2.fp32"]
    with pytest.raises(ValueError, match=r"no fp32 graph of the plan 'sid2' .*fewstep export .*--precision fp32"):
        Generator(Bundle.load(broken.root), plan="sid2", precision="fp16", backend="cpu", on_nan="fp32")


def test_a_bundle_that_was_changed_since_does_not_hide_what_happened(digits: Bundle) -> None:
    broken = overflowing(digits, "fp16")
    generator = Generator(broken, plan="sid2", precision="fp16", backend="cpu")
    broken.file(broken.manifest.graphs["sid2.fp16"].file).unlink()
    with pytest.raises(NotFiniteError, match=r"not finite \(in which row cannot be looked up: .*sid2.fp16.onnx"):
        generator(labels=[3], seeds=[0])


def test_memory_is_flat_over_ten_thousand_calls(tmp_path: Path) -> None:
    """A graph of a few nodes, so that what the runtime itself keeps would show; benchmarks/generator.py has the digits."""
    generator = Generator(sampler_bundle(tmp_path / "b"), backend="cpu")
    generator.warm_up()

    def resident_after(calls: int) -> int:
        for call in range(calls):
            batch = 1 + call % 5
            generator(labels=[2] * batch, seeds=range(call, call + batch))
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    settled = resident_after(2000)
    assert resident_after(10_000) - settled < 1_000_000


def test_a_backend_that_fails_while_it_runs_says_so(digits: Bundle) -> None:
    generator = Generator(digits, plan="sid1", backend="cpu")
    with pytest.raises(RunError, match=r"ONNX Runtime could not run the graph: .*indices element out of data bounds"):
        generator.make(Inputs([0], {"labels": np.array([99])}))
    assert generator(labels=[3], seeds=[0]).any()
