"""Published errors of these networks, in percent."""

PAPER = {
    "resnet20": 8.75,
    "resnet32": 7.51,
    "resnet44": 7.17,
    "resnet56": 6.97,
    "resnet110": 6.61,
    "resnet1202": 7.93,
}
"""He et al. 2015, Table 6; 110 layers: the mean of five runs (the best was 6.43)."""

TECHXZEN = {
    **{"plain20": 10.08, "plain32": 11.15, "plain44": 14.12, "plain56": 15.39},
    **{"resnet20": 8.74, "resnet32": 8.30, "resnet44": 7.16, "resnet56": 7.41},
}
"""techxzen/pytorch-residual-networks; its test images entered the BN statistics."""

CFMZ = {"resnet20": 8.29, "resnet32": 7.26, "resnet56": 6.31, "resnet110": 6.00}
"""apark263/cfmz."""

SOURCES = {"paper": PAPER, "techxzen": TECHXZEN, "cfmz": CFMZ}

CFMZ_COST = {"resnet20": (521, 11), "resnet32": (636, 18), "resnet56": (860, 30), "resnet110": (1277, 60)}
"""apark263/cfmz on a Titan X: MiB of GPU memory, seconds for a pass over 50,000 images."""


def of(network: str) -> dict[str, float]:
    """What each source published of a network, in percent; a variant named after a system counts as its network."""
    plain = network.removesuffix("-techxzen").removesuffix("-cfmz")
    return {source: table[plain] for source, table in SOURCES.items() if plain in table}
