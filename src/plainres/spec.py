"""Which network: a frozen value, and the names that stand for it."""

import contextlib
import re
from dataclasses import dataclass, fields, replace

from plainres.errors import UserError, unknown
from plainres.fields import one_of

_VARIANTS: dict[str, dict[str, object]] = {
    "": {},
    "b": {"shortcut": "B"},
    "c": {"shortcut": "C"},
    "techxzen": {"conv_bias": True, "subsample": "average", "init": "fan_out", "fc_init": "xavier"},
    "cfmz": {
        "shortcut": "identity-projection",
        "zero_channels": "after",
        "fc_bias": False,
        "fc_bn": True,
    },
}
_PROJECTED = {"b", "c"}  # variants of shortcuts, which a plain network has not
_PAPER_DEPTHS = (20, 32, 44, 56, 110)
_BOTTLENECK_DEPTHS = (164, 1001)  # of preact networks
_NAME = re.compile(r"(plain|resnet|preact)(\d+)(?:-([a-z]+))?")
_FAMILY = {"plain": "plain", "resnet": "residual", "preact": "preact"}


@dataclass(frozen=True)
class NetworkSpec:
    """A network of the family; every choice the paper leaves open is a field."""

    depth: int = 20  # weighted layers on the longest path, projections not counted
    kind: str = one_of("residual", "plain", "preact")
    block: str = one_of("basic", "bottleneck")
    shortcut: str = one_of("A", "B", "C", "identity-projection")
    zero_channels: str = one_of("centred", "after")  # where option A puts its new channels
    subsample: str = one_of("stride", "average")  # how option A halves a map
    conv_bias: bool = False
    fc_bias: bool = True
    fc_bn: bool = False  # BN on the logits
    init: str = one_of("fan_in", "fan_out")
    fc_init: str = one_of("he", "xavier")
    width: int = 16  # filters of the first stage
    classes: int = 10

    def __post_init__(self) -> None:
        """Refuse what is no network of the family."""
        layers = self.layers_a_block * 3
        if self.depth < layers + 2 or (self.depth - 2) % layers:
            below = max(1, (self.depth - 2) // layers)
            near = " or ".join(str(n * layers + 2) for n in (below, below + 1))
            raise ValueError(f"depth {self.depth} is not {layers}n+2; nearest: {near}")
        if self.depth > 10_000 or not 1 <= self.width <= 4096 or not 2 <= self.classes <= 65_536:
            raise ValueError("depth must be at most 10,000, width 1 to 4,096, classes 2 to 65,536")

    @property
    def layers_a_block(self) -> int:
        """Weighted layers of one block."""
        return 3 if self.block == "bottleneck" else 2

    @property
    def blocks(self) -> int:
        """Blocks of one stage: the paper's n."""
        return (self.depth - 2) // (3 * self.layers_a_block)

    @property
    def name(self) -> str:
        """The name that stands for this spec, whatever its classes; with "-custom" where none does."""
        family = next(f for f, kind in _FAMILY.items() if kind == self.kind)
        for suffix in _VARIANTS if family != "plain" else _VARIANTS.keys() - _PROJECTED:
            name = f"{family}{self.depth}" + (f"-{suffix}" if suffix else "")
            with contextlib.suppress(ValueError):  # no name stands for a bottleneck of such a depth
                if replace(_spec(family, self.depth, suffix), classes=self.classes) == self:
                    return name
        return f"{family}{self.depth}-custom"

    @classmethod
    def named(cls, name: str) -> "NetworkSpec":
        """The spec of a name: `resnet56`, `plain20-techxzen`, `preact164`; the nearest is named if there is none."""
        match = _NAME.fullmatch(name.lower())
        projected = match is not None and match[1] == "plain" and match[3] in _PROJECTED
        if match is None or (match[3] or "") not in _VARIANTS or projected:
            raise unknown("network", name, known_names())
        try:
            return _spec(match[1], int(match[2][:9]), match[3] or "")
        except ValueError as error:
            raise UserError(f"network '{name}': {error}") from None

    def with_classes(self, classes: int) -> "NetworkSpec":
        """The same network for another number of classes."""
        return replace(self, classes=classes)

    def differences(self) -> dict[str, object]:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def known_names() -> list[str]:
    """The names worth listing: the paper's depths in every variant, and the published pre-activation ones."""
    return [
        *(f"{f}{d}" for f in ("plain", "resnet", "preact") for d in _PAPER_DEPTHS),
        *("resnet1202", "preact164", "preact1001"),
        *(f"resnet{d}-{v}" for v in ("b", "c") for d in _PAPER_DEPTHS),
        *(f"{f}{d}-{v}" for v in ("techxzen", "cfmz") for f in ("plain", "resnet") for d in _PAPER_DEPTHS),
    ]


def _spec(family: str, depth: int, suffix: str) -> NetworkSpec:
    changes = dict(_VARIANTS[suffix])
    if family == "preact" and depth in _BOTTLENECK_DEPTHS:
        # 1.7 and 10.3 million parameters: where the shape changes they project
        changes = {"block": "bottleneck", "shortcut": "B"} | changes
    return NetworkSpec(depth=depth, kind=_FAMILY[family], **changes)  # type: ignore[arg-type]
