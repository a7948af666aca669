"""
Lets SGLang start on a CPU without the packages that only GPUs, pictures and sound need.

Python runs this file at its start when its folder is on PYTHONPATH. SGLang imports those packages
at the top of modules that a text model on a CPU needs too, and never calls them. So an import of
one that is not installed gives a stand-in: its names can be imported, subclassed and used as
decorators, and whoever calls one is told what is missing. `importlib.util.find_spec` still says
that it is not there.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ABSENT = {
    "triton", "numba",  # compilers
    "sgl_kernel", "flashinfer", "deep_gemm", "cuda", "cutlass",  # kernels for GPUs
    "torchvision", "torchaudio", "timm",  # pictures and sound
    "datasets", "IPython",  # benchmarks and notebooks
}  # fmt: skip
CONSTANT = "triton.language.constexpr"  # of kernels, made when their modules are imported


def is_absent(module: str) -> bool:
    return module.partition(".")[0] in ABSENT


class Named(type):
    """The kind of all stand-ins, which are classes, so that they can be subclassed and named."""

    def __getattr__(cls, name: str) -> "Named":
        return stand_in(cls.__name__, name)

    def __call__(cls, *args: object, **kwargs: object) -> object:
        if len(args) == 1 and not kwargs and (callable(args[0]) or cls.__name__ == CONSTANT):
            return args[0]  # a decorator
        if cls.__name__.startswith("triton."):
            return lambda kernel: kernel  # a decorator with options
        raise NotImplementedError(f"{cls.__name__} is not installed: see engine/sglang/stand_in")


def stand_in(owner: str, name: str) -> Named:
    if name.startswith("__"):
        raise AttributeError(name)
    return Named(f"{owner}.{name}", (), {})


class Finder(MetaPathFinder, Loader):
    """The last finder that Python asks, so reached for what is not installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:
        return ModuleSpec(fullname, self, is_package=True) if is_absent(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0"
        module.__getattr__ = lambda name: stand_in(module.__name__, name)


find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if is_absent(name) and name not in sys.modules else find_spec(name, package)
)
sys.meta_path.append(Finder())
