"""Weights files, which know what they are, and the classifier that users load."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from plainres import fields, files, normalization
from plainres.errors import UserError
from plainres.network import Network
from plainres.normalization import Normalization
from plainres.spec import NetworkSpec

if TYPE_CHECKING:
    from PIL.Image import Image

_KEY = "plainres"  # of the one metadata entry
_MEAN, _STD = "normalization.mean", "normalization.std"
RESERVED = (_MEAN, _STD)  # keys no network may have
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key


def save(path: Path, network: nn.Module, normalization: Normalization, about: Mapping[str, Any]) -> str:
    """Write a network's state, its normalization and what is known `about` it; returns the file's SHA-256.

    Equal weights and equal facts make equal files, bit for bit.
    """
    # copies, since safetensors refuses tensors that share memory, as tied weights do
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in bare(network.state_dict()).items()}
    tensors |= {_MEAN: normalization.mean.cpu(), _STD: normalization.std.cpu()}
    facts = {**about, "format": 1, "normalization": normalization.kind}
    content = safetensors.torch.save(tensors, {_KEY: json.dumps(facts, sort_keys=True)})
    files.write(path, content)
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Weights:
    """What a weights file holds: the network's state, its normalization, and the facts it carries."""

    state: dict[str, Tensor]
    normalization: Normalization
    about: dict[str, Any]


def read(path: Path) -> Weights:
    """Read a weights file; anything else is a UserError that says what is wrong with it."""
    try:
        path.open("rb").close()  # safetensors says of a file it may not read that it is not there
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.offset_keys()}
    except OSError as error:
        raise files.refused(error, path) from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a weights file: {error}") from None
    if _KEY not in metadata or _MEAN not in tensors or _STD not in tensors:
        raise UserError(f"{path}: safetensors without this project's metadata: it does not say which network it is")
    try:
        about = json.loads(metadata[_KEY])
        known = about["normalization"] in normalization.KINDS
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path}: damaged metadata: it does not say how images are normalized")
    inputs = Normalization(about["normalization"], tensors.pop(_MEAN), tensors.pop(_STD))
    if tuple(inputs.mean.shape) not in ((3, 1, 1), (3, 32, 32)) or tuple(inputs.std.shape) != (3, 1, 1):
        raise UserError(f"{path}: damaged: the normalization's mean or deviation has a wrong shape")
    return Weights(bare(tensors), inputs, about)


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without what wrappers put before every one of its keys."""
    for prefix in _WRAPPERS:
        if state and all(key.startswith(prefix) for key in state):
            return bare({key.removeprefix(prefix): value for key, value in state.items()})
    return dict(state)


class Classifier(nn.Module):
    """A network with its input normalization, in evaluation mode: uint8 images in, logits out.

    `network` is the bare network, `classes` the names of its outputs, `about` what its file says of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, inputs: Normalization, classes: Sequence[str], about: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = tuple(classes)
        self.about = dict(about)
        self.kind = inputs.kind
        self.register_buffer("mean", inputs.mean, persistent=False)
        self.register_buffer("std", inputs.std, persistent=False)
        self.eval()

    @property
    def normalization(self) -> Normalization:
        """The normalization applied to every image."""
        return Normalization(self.kind, self.mean, self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) of 0..255 to logits (N, classes)."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, 32, 32):
            raise ValueError(f"expected images (N, 3, 32, 32) of 0..255, got shape {tuple(images.shape)}")
        logits: Tensor = self.network(self.normalization(images))
        return logits

    @torch.inference_mode()
    def predict(self, images: "Tensor | Image | Sequence[Image]") -> list[tuple[str, float]]:
        """The likeliest class of each image with its probability; uint8 images (N, 3, 32, 32) or pillow's."""
        pixels = images if isinstance(images, Tensor) else _pixels(images)
        best = self(pixels.to(self.mean.device)).softmax(1).max(1)
        return [(self.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _pixels(images: "Image | Sequence[Image]") -> Tensor:
    each = images if isinstance(images, Sequence) else [images]
    resized = [i.convert("RGB") if i.size == (32, 32) else i.convert("RGB").resize((32, 32)) for i in each]
    return torch.from_numpy(np.stack([np.asarray(i) for i in resized])).permute(0, 3, 1, 2).contiguous()


def load(path: str | Path) -> Classifier:
    """The classifier of a weights file, or of a finished run's directory."""
    file = Path(path)
    if file.is_dir():
        file = file / "weights.safetensors"
        if not file.exists():
            raise UserError(f"{path}: no weights.safetensors in it; is the run finished?")
    elif not file.exists():
        raise UserError(f"{path}: there is no such file")
    held = read(file)
    spec = held.about.get("network")
    if not isinstance(spec, dict) or "module" in spec:
        raise UserError(f"{file}: holds a network from outside plainres; load its state into that network yourself")
    network = _unfilled(fields.from_json(NetworkSpec, spec, f"{file}: network"), held.state, str(file))
    fill(network, held.state, str(file))
    classes = held.about.get("classes")
    if not isinstance(classes, list) or len(classes) != network.spec.classes:
        raise UserError(f"{file}: damaged metadata: no list of {network.spec.classes} class names")
    return Classifier(network, held.normalization, classes, held.about)


def fill(network: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
    """Load a state into a network; missing, extra or misshapen tensors are a UserError that names them.

    Numbers of half precision become those of the network.
    """
    expected = bare(network.state_dict())
    state = {k: _as(v, expected[k].dtype) if k in expected else v for k, v in bare(state).items()}
    wrong = [f"{k} is missing" for k in expected if k not in state]
    wrong += [f"{k} is not of this network" for k in state if k not in expected]
    for key in expected.keys() & state.keys():
        found, right = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (state[key], expected[key]))
        if found != right:
            wrong.append(f"{key} is {found}, expected {right}")
    if wrong:
        raise UserError(f"{file}: {len(wrong)} tensors do not fit: {'; '.join(sorted(wrong)[:4])}")
    prefix = next(iter(network.state_dict()), "").removesuffix(next(iter(expected), ""))
    network.load_state_dict({prefix + key: value for key, value in state.items()}, assign=True)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor


def _unfilled(spec: NetworkSpec, state: Mapping[str, Tensor], file: str) -> Network:
    """The network without its numbers; one that the state cannot fill is refused before it costs anything."""
    first = state.get("conv1.weight")
    if first is None:
        raise UserError(f"{file}: conv1.weight is missing")
    if len(state) < spec.depth or len(first) != spec.width:
        raise UserError(f"{file}: its tensors do not fit {spec.name}, which its metadata names")
    with torch.device("meta"):
        return Network(spec)
