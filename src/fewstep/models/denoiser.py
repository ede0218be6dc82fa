"""D(x, sigma, condition): the seam everything talks to, around a diffusers network. Needs torch and diffusers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import Constant, DenoiserEntry
from fewstep.artifact.signature import Input, State
from fewstep.models.configured import class_of, quiet
from fewstep.models.families import check_fit, family_of, network_class
from fewstep.models.families.base import Family, classes_of
from fewstep.models.tensors import os_errors
from fewstep.sampling.parametrisation import Edm, Parametrisation, Scales

__all__ = [
    "Denoiser",
    "check_call",
    "fresh_network",
    "load_network",
    "named_tensors",
    "on_meta",
    "save_network",
    "unet",
    "weights",
]


EDM = Edm(sigma_data=0.5)


class Denoiser(nn.Module):
    """D(x, sigma, *inputs) around a network F; inputs are the tensors of a signature, with a batch.

    Arithmetic in sigma stays in the dtype of x; only F runs in the dtype of its weights.

    Args:
        net: the network, of a class that has a family, or of any with `family`.
        parametrisation: what F estimates, and what it is told of the noise level.
        patch: above 1, patch x patch pixels are folded into channels before F and back after it: F works on a smaller image.
        constants: what its family tells F besides, see DenoiserEntry.
        family: how F is called; by the class of the network unless given.

    Raises:
        ValueError: for a class without a family where none is given, or constants that its family has no use for.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        parametrisation: Parametrisation,
        patch: int = 1,
        constants: Mapping[str, Constant] = {},
        family: Family | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.parametrisation = parametrisation
        self.patch = patch
        self.family = family or family_of(type(net).__name__)
        self.constants, self.takes = dict(constants), self.family.names(getattr(net, "config", {}))
        told = self.family.tensors(getattr(net, "config", {}), constants)
        for name, tensor in told.items():
            self.register_buffer(name, tensor, persistent=False)
        self.told = tuple(told)

    def forward(self, x: Tensor, sigma: Tensor | float, *condition: Tensor, timestep: float | None = None) -> Tensor:
        """Denoised estimate (B, C, ...) of x at noise level sigma, one float for all or (B,).

        Args:
            x: the noisy state, (B, C, ...).
            sigma: one float for all, or (B,).
            condition: the tensors of a signature's inputs in its order, (B, ...) each.
            timestep: what the network is told instead of what follows from sigma, for plans that have their own.

        Returns:
            The estimate, in the dtype of x.

        Raises:
            ValueError: for a float sigma that the parametrisation does not have.
        """
        scales = self.scales(sigma).told(timestep)
        when = torch.as_tensor(scales.timestep, dtype=torch.float32, device=x.device)
        ones = (1,) * (x.ndim - 1)
        skip, out, into = (s.reshape(-1, *ones) if isinstance(s, Tensor) else s for s in scales[:3])
        return (skip * x + out * self.evaluate(into * x, when, *condition)).to(x.dtype)

    def evaluate(self, x: Tensor, timestep: Tensor, *condition: Tensor) -> Tensor:
        """F(x, timestep, *condition) alone, in the dtype of x.

        Args:
            x: the network's input, (B, C, ...), scaled already.
            timestep: float32, () for all or (B,).
            condition: as for `forward`.

        Returns:
            (B, C, ...), without the variance that some networks learned besides.
        """
        # (B, C, H, W) -> (B, C p p, H/p, W/p)
        folded = functional.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        # One timestep for all stays (1,), so that what depends on it alone is computed once and folds to constants in graphs.
        inputs = [c.to(self.dtype) if c.is_floating_point() else c for c in condition]
        named = dict(zip(self.takes, inputs, strict=False))
        told = {name: getattr(self, name) for name in self.told}
        out = self.family.call(self.net, folded.to(self.dtype), timestep.reshape(-1), named, told)
        out = self._estimate(out, folded.shape).to(x.dtype)
        return functional.pixel_shuffle(out, self.patch) if self.patch > 1 else out

    def _estimate(self, out: Any, shape: torch.Size) -> Tensor:
        """What F made, without the variance that some networks learned besides. Raises ValueError where it is no state."""
        if not isinstance(out, Tensor):
            raise ValueError(f"a call of this {self.family.kind} gives a {type(out).__name__}; it gives a tensor alone")
        made, given = tuple(out.shape[1:]), tuple(shape[1:])
        if made == given:
            return out
        channels = given[0]
        if getattr(self.net, "config", {}).get("out_channels") == 2 * channels and made == (2 * channels, *given[1:]):
            return out[:, :channels]
        raise ValueError(f"this {self.family.kind} makes {made} of states {given}; it gives what it was given")

    def scales(self, sigma: Tensor | float) -> Scales:
        """The numbers that turn F into D at a noise level."""
        return self.parametrisation.scales(sigma)

    @property
    def architecture(self) -> str | None:
        """Class and configuration of the network: networks for which it is equal differ in weights only.

        None for a module without a configuration, which is like no other.
        """
        net: Any = self.net
        if not hasattr(net, "config"):
            return None
        config = {key: value for key, value in net.config.items() if not key.startswith("_")}
        told = {name: list(getattr(self, name).shape) for name in self.told}
        return f"{type(net).__name__} {json.dumps(config, sort_keys=True)} patch {self.patch} {json.dumps(told)}"

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next((p.dtype for p in self.net.parameters()), torch.float32)


def on_meta(denoiser: Denoiser) -> Denoiser:
    """The same architecture in the same dtype on torch's meta device: shapes without weights, in eval mode."""
    with torch.device("meta"):
        net: Any = denoiser.net
        if hasattr(net, "config"):
            made = nn.Module.to(
                type(net).from_config(net.config), denoiser.dtype
            )  # diffusers' own warns where nothing is wrong
        else:
            tensors = [*net.parameters(), *net.buffers()]
            made = copy.deepcopy(net, {id(tensor): _without_numbers(tensor) for tensor in tensors})
        about: dict[str, Any] = {"parametrisation": denoiser.parametrisation, "patch": denoiser.patch}
        return Denoiser(made, constants=denoiser.constants, family=denoiser.family, **about).eval()


def check_call(denoiser: Denoiser, state: State, inputs: Sequence[Input]) -> None:
    """Try a family's call on torch's meta device, which costs no arithmetic.

    Args:
        denoiser: that is to be used.
        state: what it works on.
        inputs: of the signature, in its order.

    Raises:
        ValueError: where the call does not run, or does not give what the network estimates.
    """
    tensors = [each.tensor for each in inputs]
    told = ", ".join(spec.name for spec in tensors) or "no inputs"
    with torch.no_grad(), torch.device("meta"):
        given = [torch.zeros(2, *spec.shape, dtype=getattr(torch, spec.dtype)) for spec in tensors]
        x, timestep = torch.zeros(2, *state.shape), torch.zeros(1)
        try:
            on_meta(denoiser).evaluate(x, timestep, *given)
        except Exception as error:  # of whatever kind a family's file raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(
                f"the call in {denoiser.family.file} does not run with {told}, states {state.shape} ({reason}); mend it there"
            ) from error


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its qualified name, also the buffers that a state_dict leaves out (position tables)."""
    return {name: t.detach() for name, t in named_tensors(module)}


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those that have several names under each of them."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def unet(
    state: State,
    inputs: Sequence[Input],
    *,
    channels: tuple[int, ...],
    layers: int,
    attention: bool,
    patch: int,
    parametrisation: Parametrisation = EDM,
) -> Denoiser:
    """A fresh UNet2DModel, attention in its middle or nowhere; one class embedding more than classes, for "none".

    Args:
        state: of two axes, which divide by patch 2^(levels - 1).
        inputs: class labels, or nothing.
        channels: of each level, from the full size down; multiples of 8.
        layers: residual blocks of each level.
        attention: whether the middle has it.
        patch: pixels of a side that are folded into channels.
        parametrisation: EDM's with sigma_data 0.5 unless given.

    Raises:
        ValueError: when the state has not two axes, or they do not divide into patches and levels.
    """
    if len(state.axes) != 2:
        raise ValueError(f"a U-Net of its own walks states with two axes, this one has {len(state.axes)}; give a --network")
    height, width = state.axes
    divisor = patch * 2 ** (len(channels) - 1)
    if height % divisor or width % divisor:
        raise ValueError(
            f"sides of {height}x{width} do not divide by {divisor} (patch {patch}, {len(channels)} levels); choose fewer "
            f"levels or a smaller patch or, of images, another size: --resolution {max(height // divisor, 1) * divisor}"
        )
    classes = classes_of(inputs)
    net = network_class("UNet2DModel")(
        sample_size=(height // patch, width // patch),
        in_channels=state.channels * patch**2,
        out_channels=state.channels * patch**2,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=8,
        add_attention=attention,
        attention_head_dim=min(32, channels[-1]),
        num_class_embeds=None if classes is None else classes + 1,
    )
    return Denoiser(net, parametrisation=parametrisation, patch=patch)


def fresh_network(
    config: Mapping[str, Any], state: State, inputs: Sequence[Input], *, parametrisation: Parametrisation, patch: int = 1
) -> Denoiser:
    """A network of a class that has a family, by its diffusers configuration, with new weights.

    Args:
        config: as diffusers writes it, with its _class_name.
        state: what it works on.
        inputs: of the signature.
        parametrisation: of the denoiser.
        patch: pixels of a side that are folded into channels.

    Raises:
        ValueError: for another class, a configuration that its class does not take, or a network that does not fit.
    """
    made = network_class(str(config.get("_class_name")))
    try:
        net = made.from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{made.__name__} does not take this configuration ({error}); compare it with diffusers' own"
        ) from None
    check_fit(net, state, inputs, patch=patch, constants={})
    denoiser = Denoiser(net, parametrisation=parametrisation, patch=patch)
    check_call(denoiser, state, inputs)
    return denoiser


def save_network(draft: Draft, name: str, denoiser: Denoiser) -> None:
    """Write a denoiser's network into a bundle draft, in diffusers layout.

    Args:
        draft: gets components/NAME and its entry, in place of what was there.
        name: of the component.
        denoiser: with a network of diffusers or our own, which can be configured and saved.

    Raises:
        ValueError: when it does not fit the draft's state or inputs.
        OSError: where it cannot be written.
    """
    net: Any = denoiser.net
    manifest = draft.manifest
    check_fit(net, manifest.state, manifest.signature.inputs, patch=denoiser.patch, constants=denoiser.constants)
    check_call(denoiser, manifest.state, manifest.signature.inputs)
    directory = f"components/{name}"
    draft.remove(directory)
    net.register_to_config(_name_or_path="")  # else the path it was loaded from goes along
    with os_errors():
        net.save_pretrained(draft.new(f"{directory}/config.json").parent)
    manifest.components[name] = DenoiserEntry(
        kind=type(net).__name__,
        directory=directory,
        parametrisation=denoiser.parametrisation,
        patch=denoiser.patch,
        constants=denoiser.constants,
    )


def load_network(bundle: Bundle, name: str) -> Denoiser:
    """A bundle's network as a denoiser, fp32, in eval mode.

    Args:
        bundle: whose component is read.
        name: of a network in its manifest.

    Raises:
        ValueError: for a name there is not, a class fewstep does not know, weights that lack a tensor or have one more, or a
            network that does not fit the bundle.
    """
    entry: DenoiserEntry = bundle.pick("network", name, bundle.manifest.denoisers)
    directory = bundle.component(name)
    made = network_class(class_of(directory))
    try:
        with quiet():
            net, report = made.from_pretrained(directory, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # of whatever kind diffusers and safetensors raise for what they do not expect
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise ValueError(
            f"the weights of network {name!r} do not fit its config.json ({reason}); copy the bundle again from its source"
        ) from None
    if wrong := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise ValueError(
            f"the weights of network {name!r} do not match its config.json in {len(wrong)} tensors, the first is {wrong[0]}; "
            "copy the bundle again from its source"
        )
    net.register_to_config(_name_or_path="")
    manifest = bundle.manifest
    check_fit(net, manifest.state, manifest.signature.inputs, patch=entry.patch, constants=entry.constants)
    about: dict[str, Any] = {"parametrisation": entry.parametrisation, "patch": entry.patch}
    denoiser = Denoiser(net, constants=entry.constants, **about).eval()
    check_call(denoiser, manifest.state, manifest.signature.inputs)
    return denoiser
