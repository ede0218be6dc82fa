"""What a library user calls: the verbs of the command, as functions. Each imports what it needs when it is called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import Layout
from fewstep.artifact.signature import Input, Output, State
from fewstep.artifact.spec import Precision, refuse_other_words
from fewstep.sampling.parametrisation import Parametrisation
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent

if TYPE_CHECKING:
    from torch import nn

    from fewstep.data import Images, Samples
    from fewstep.data.inputs import Arrays
    from fewstep.evaluation.comparison import Comparison

__all__ = ["build", "calibrate", "compare", "distill", "export", "import_pipeline", "train"]

Place = str | os.PathLike[str]


def import_pipeline(source: Place, out: Place, **options: Any) -> Bundle:
    """Start a bundle with the network of a checkpoint and its own scheduler as a plan, proven against diffusers' pipeline.

    Args:
        source: a pipeline directory of diffusers, a network with a scheduler beside it, or a single file of weights.
        out: the bundle to write.
        options: what the checkpoint does not say, by the names of the fields below.

    Returns:
        The bundle, with the network `teacher`.

    Raises:
        FileExistsError: where something is at `out`.
        FileNotFoundError: for a directory that is no pipeline's.
        ValueError: for what fewstep does not drive, or where pipeline and plan end differently.
    """
    from fewstep.models.importer import ImportOptions, import_teacher

    return import_teacher(Path(source), Path(out), ImportOptions(**options))[0]


def train(
    out: Place,
    data: str | Samples,
    *,
    start: str | None = None,
    arrays: Arrays | None = None,
    license: str | None = None,
    log: Path | None = None,
    track: Track = silent,
    **settings: Any,
) -> Bundle:
    """Train a network on real samples, or train one further. Killed and called again, it goes on, bit for bit.

    Args:
        out: the bundle to write or, with `start`, the one that has the network.
        data: as for fewstep train --data, or samples such as fewstep.data.Images.of(pixels, labels).
        start: a network of the bundle to go on from.
        arrays: what the labels of samples count, by the names of inputs, (N, ...), and negative_NAME (1, ...).
        license: of the samples, in words.
        log: a directory for curves and sheets of samples.
        track: shows progress, such as fewstep.system.console.track.
        settings: fields of TeacherConfig, below; with `start`, those that do not describe the network, which are all above
            `kind`.

    Returns:
        The bundle, with the network `teacher`, or START_tuned, and an 18-step Heun plan of it.

    Raises:
        FileExistsError: where something is at `out`, and `start` names none of its networks.
        ValueError: for settings or samples that do not fit.
    """
    from fewstep.data.inputs import inputs_of
    from fewstep.trainer.batches import examples_like, open_examples
    from fewstep.trainer.configs import TeacherConfig, TuneConfig
    from fewstep.trainer.teacher import train_teacher

    config = TuneConfig(**settings) if start else TeacherConfig(**settings)
    if not isinstance(data, str):
        samples = data
    elif start:
        samples = examples_like(Bundle.load(out), data, rows=arrays is not None)
    else:
        samples = open_examples(data, inputs=inputs_of(arrays) if arrays else None)
    name = f"{start}_tuned" if start else "teacher"
    about: dict[str, Any] = {"start": start, "name": name, "arrays": arrays, "license": license, "log": log, "track": track}
    return train_teacher(Path(out), samples, config, **about)


def distill(
    bundle: Bundle,
    name: str,
    *,
    teacher: str = "teacher",
    samples: Samples | None = None,
    validate: Images | None = None,
    arrays: Arrays | None = None,
    license: str | None = None,
    log: Path | None = None,
    track: Track = silent,
    **settings: Any,
) -> Bundle:
    """Distil a network into a generator of 1 to 4 calls (SiD). Killed and called again, it goes on, bit for bit.

    Args:
        bundle: with the teacher.
        name: of the generator and of its plan.
        teacher: a network of the bundle.
        samples: real ones, for an adversarial term; none are read otherwise.
        validate: images that evaluate the run; the weights that were best are kept.
        arrays: what samples are made from, where that cannot be drawn at random.
        license: of what goes in, in words.
        log: a directory for curves and sheets of samples.
        track: shows progress.
        settings: fields of SidConfig, below.

    Returns:
        The bundle as it is then.

    Raises:
        ValueError: for settings, samples or arrays that do not fit, or a run that does not stay finite.
    """
    from fewstep.evaluation.validate import validator
    from fewstep.trainer.configs import SidConfig
    from fewstep.trainer.sid import distill as run

    metric = validator(bundle, validate, arrays=arrays) if validate else None
    about: dict[str, Any] = {"samples": samples, "validate": metric, "arrays": arrays, "license": license, "log": log}
    about["validated_on"] = validate.source if validate else None
    return run(bundle, name, SidConfig(**settings), teacher=teacher, track=track, **about)


def calibrate(
    bundle: Bundle,
    name: str,
    *,
    method: str = "table",
    data: Images | None = None,
    network: str = "teacher",
    arrays: Arrays | None = None,
    track: Track = silent,
    **settings: Any,
) -> Bundle:
    """Fit a sampler of few calls to a network. Killed and called again, it goes on.

    Args:
        bundle: with the network.
        name: of the new plan.
        method: table, fitted as a whole, or a solver fitted step by step, such as iia-ddim.
        data: real images that a table comes near to, in a classifier's features; the many-step sample of the same noise unless
            given.
        network: of the bundle.
        arrays: what samples are made from, where that cannot be drawn at random.
        track: shows progress.
        settings: fields of TableConfig, below; with another method, of FitConfig.

    Returns:
        The bundle as it is then.

    Raises:
        ValueError: for settings that do not fit, or a network there is not.
    """
    from fewstep.calibration import calibrate as fits
    from fewstep.calibration.configs import FitConfig, TableConfig
    from fewstep.calibration.endtoend import Real
    from fewstep.evaluation.features import FITTING, feature_network

    about: dict[str, Any] = {"name": name, "network": network, "arrays": arrays, "track": track}
    if method != "table":
        if data is not None:
            raise ValueError(f"{method} reads no samples; leave data out, or fit a table")
        return fits.calibrate(bundle, FitConfig(method=method, **settings), **about)[0]
    real = Real.of(data, feature_network("classifier", data, seed=FITTING, track=track)) if data is not None else None
    return fits.calibrate_table(bundle, TableConfig(**settings), real=real, **about)[0]


def export(
    source: Bundle | nn.Module,
    out: Place | None = None,
    *,
    plans: Mapping[str, Plan] | Sequence[str] = (),
    precisions: Sequence[Precision] = ("fp32",),
    layouts: Sequence[Layout] = (),
    state: State | None = None,
    parametrisation: Parametrisation | None = None,
    inputs: Sequence[Input] = (),
    output: Output | None = None,
    encode: Mapping[str, nn.Module] = {},
    track: Track = silent,
) -> Bundle:
    """Write graphs: of plans of a bundle, or of any torch module, as a bundle of its own.

    Args:
        source: a bundle, or a module F(x, timestep, **inputs): x (B, C, *axes) float32, timestep (1,) or (B,) float32 and
            every input by its name, (B, ...), to (B, C, *axes). Of a class it gets the number, int64 (B,), and one more than
            the last for "none". In fp16 it gets x and arrays in fp16, and timestep in fp32 still. It is exported in eval mode,
            and is afterwards as it was.
        out: where a module's bundle is to be.
        plans: names of a bundle's plans, its default one unless given; samplers by name for a module.
        precisions: of the graphs: fp32, fp16, bf16; of a bundle with its networks also int8, int8-fp16, fp8.
        layouts: unrolled, loop or step; by their size unless given.
        state: what samplers of a module walk on.
        parametrisation: what a module estimates, and what it is told of the noise level.
        inputs: what a module's samples are made from.
        output: what a module's last state is; numbers without names unless given.
        encode: modules by the name of an input, which run once, before the loop.
        track: shows progress.

    Returns:
        The bundle, with the graphs and the references that prove them.

    Raises:
        ValueError: for plans, precisions or modules that do not fit, and for what torch.export refuses.
        FileExistsError: where something is at `out`.
    """
    refuse_other_words("precision", precisions, get_args(Precision))
    refuse_other_words("layout", layouts, get_args(Layout))
    about: dict[str, Any] = {
        "state": state,
        "parametrisation": parametrisation,
        "inputs": inputs,
        "output": output,
        "encode": encode,
    }
    if isinstance(source, Bundle):
        given = [name for name, value in ({"out": out} | about).items() if value]
        return _export_bundle(source, given, plans, precisions, layouts, track)
    from fewstep.exporter.module import export as export_module

    if out is None or state is None or parametrisation is None or not isinstance(plans, Mapping):
        raise ValueError("a module is exported to a place, with its state, its parametrisation and plans by name; give them")
    about |= {"plans": plans, "precisions": precisions, "layouts": layouts, "track": track}
    return export_module(source, Path(out), **about)


def _export_bundle(
    bundle: Bundle,
    given: Sequence[str],
    plans: Mapping[str, Plan] | Sequence[str],
    precisions: Sequence[Precision],
    layouts: Sequence[Layout],
    track: Track,
) -> Bundle:
    from fewstep.exporter.export import export_graphs

    if given:
        raise ValueError(f"a bundle says itself what its graphs are of, and they go into it; leave out {', '.join(given)}")
    if isinstance(plans, str | Mapping):
        raise ValueError("plans of a bundle are named, in a list such as ['sid1']; put others into it with Bundle.edit")
    default = bundle.manifest.default
    if not plans and default is None:
        raise ValueError(f"{bundle.root.name} has no default plan; name one of: {', '.join(sorted(bundle.manifest.plans))}")
    return export_graphs(bundle, list(plans) or [str(default)], precisions, layouts=layouts, track=track)


def build(bundle: Bundle, graphs: Sequence[str] = ()) -> Bundle:
    """Build TensorRT engines of a bundle's graphs, with what is best for this machine.

    Args:
        bundle: with graphs.
        graphs: by name; all of them unless given.

    Returns:
        The bundle, with the engines.

    Raises:
        ValueError: for a graph there is not, or where nothing here builds engines.
    """
    from fewstep.exporter.engine.build import build_engines

    build_engines(bundle, list(graphs) or list(bundle.manifest.graphs))
    return Bundle.load(bundle.root)


def compare(
    bundle: Bundle,
    data: str,
    *,
    plans: Sequence[str] = (),
    arrays: Arrays | None = None,
    track: Track = silent,
    **settings: Any,
) -> Comparison:
    """Evaluate the graphs of a bundle's plans as they run here, against held-out samples: quality, latency, throughput.

    Args:
        bundle: with graphs.
        data: as for fewstep compare --data; its held-out samples are what plans are compared with.
        plans: by name; all that have a graph unless given.
        arrays: what samples are made from, where that cannot be drawn at random.
        track: shows progress.
        settings: fields of CompareConfig, below; metrics={"name": function of real and made values} are your own.

    Returns:
        What every plan came to; the bundle keeps it, too.

    Raises:
        ValueError: where no plan has a graph, or the samples are not of the bundle's kind.
    """
    from fewstep.evaluation.compare import CompareConfig
    from fewstep.evaluation.compare import compare as run

    return run(bundle, CompareConfig(data=data, **settings), plans, arrays=arrays, track=track)
