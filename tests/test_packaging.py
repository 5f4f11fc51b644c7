"""What an installation must keep to: no torch in the build, no second OpenMP, pure Python when there is no compiler."""

from __future__ import annotations

import platform
import re
import struct
import sys
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
import torch
from test_backends import needs_native, python

import aigc_fast
from aigc_fast.runtime import native

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parent.parent


def needed_libraries(path: Path) -> set[str]:
    """The DT_NEEDED entries of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    section_offset, section_count = struct.unpack_from("<Q", data, 0x28)[0], struct.unpack_from("<H", data, 0x3C)[0]
    names: set[str] = set()
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, section_offset + 64 * i) for i in range(section_count)]
    dynamic = next(section for section in sections if section[1] == 6)
    strings = sections[dynamic[6]][4]
    for entry in range(dynamic[4], dynamic[4] + dynamic[5], 16):
        tag, value = struct.unpack_from("<qQ", data, entry)
        if tag == 1:
            start = strings + value
            names.add(data[start : data.index(b"\0", start)].decode())
    return names


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
class TestBuildMetadata:
    @staticmethod
    def project() -> dict:
        return tomllib.loads((ROOT / "pyproject.toml").read_text())

    def test_the_build_never_pulls_torch(self) -> None:
        build = self.project()["build-system"]["requires"]
        assert {re.split(r"[<>=~ ]", requirement)[0] for requirement in build} == {"scikit-build-core", "pybind11"}
        assert "find_package(Torch" not in (ROOT / "CMakeLists.txt").read_text()

    def test_without_a_compiler_the_install_goes_on(self) -> None:
        overrides = self.project()["tool"]["scikit-build"]["overrides"]
        assert {"if": {"failed": True}, "wheel": {"cmake": False}} in overrides

    def test_one_version_everywhere(self) -> None:
        assert self.project()["project"]["version"] == aigc_fast.__version__
        if native._C is not None:
            assert native.info()["version"] == aigc_fast.__version__

    def test_the_tests_need_what_the_test_extra_lists(self) -> None:
        extras = self.project()["project"]["optional-dependencies"]["test"]
        assert {"hypothesis", "scipy"} <= {re.split(r"[<>=~; \[]", name)[0] for name in extras}


def test_the_requirement_on_torch_is_a_floor_not_a_pin() -> None:
    try:
        found = requires("aigc-fast")
    except ModuleNotFoundError:
        pytest.skip("aigc_fast runs from its source folder, not installed")
    assert [name for name in found if name.startswith("torch") and "extra" not in name] == ["torch>=2.6"]
    assert metadata("aigc-fast")["License-Expression"] == "Apache-2.0"


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF")
def test_the_native_library_needs_neither_torch_nor_an_openmp() -> None:
    needed = needed_libraries(Path(native._C.__file__))
    assert not [name for name in needed if re.search(r"torch|c10|gomp|omp|cuda|mkl", name)], needed
    assert any(name.startswith("libc.so") for name in needed)


@needs_native
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or "GNU" not in native.info()["compiler"], reason="GCC and glibc")
def test_the_native_library_runs_wherever_manylinux_2_28_does() -> None:
    library = Path(native._C.__file__)
    assert "libstdc++.so.6" not in needed_libraries(library)
    versions = re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())
    assert versions
    assert max(map(int, versions)) <= 28


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's OpenMP is borrowed on Linux")
def test_threads_are_the_ones_torch_has() -> None:
    assert native.info()["thread_pool"] == "torch's OpenMP"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert native.info()["threads"] == 1
    finally:
        torch.set_num_threads(before)


PURE_PYTHON = """
class NoNative:
    def find_spec(self, name, path=None, target=None):
        if name in ("aigc_fast._C", "aigc_fast._C_cuda"):
            raise ModuleNotFoundError("no native library here")
sys.meta_path.insert(0, NoNative())
import torch, aigc_fast
from aigc_fast.runtime import native
"""


def test_pure_python_works_and_says_so() -> None:
    found = python(
        PURE_PYTHON
        + "x, w = torch.randn(8, 64, 8, 8), torch.randn(64, 64, 4, 4)\n"
        + "assert torch.equal(aigc_fast.functional.conv_transpose2d(x, w, stride=2),"
        + " torch.nn.functional.conv_transpose2d(x, w, stride=2))\n"
        + "model = aigc_fast.optimize(torch.nn.Sequential(torch.nn.ConvTranspose2d(64, 3, 4, 2, 1), torch.nn.Tanh()))\n"
        + "assert model.eval()(x).shape == (8, 3, 16, 16)\n"
        + "print(aigc_fast.info()['native']['error'])"
    )
    assert found.returncode == 0, found.stderr
    assert "no native library here" in found.stdout
    assert "without a C++ compiler" in found.stdout


def test_pure_python_refuses_the_forced_cpu_backend_with_the_reason() -> None:
    found = python(
        PURE_PYTHON
        + "with aigc_fast.backend('cpu'):\n"
        + "    aigc_fast.functional.conv_transpose2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))"
    )
    assert "BackendError" in found.stderr
    assert "no native library here" in found.stderr


def test_an_old_torch_gets_a_readable_line() -> None:
    found = python("import torch; torch.__version__ = '2.5.1+cpu'\nimport aigc_fast")
    assert found.returncode != 0
    assert "ImportError: aigc_fast needs torch >= 2.6, found torch 2.5.1+cpu" in found.stderr


def test_importing_the_package_does_not_load_the_models() -> None:
    found = python("import aigc_fast\nprint('aigc_fast.models' in sys.modules, aigc_fast.models.__name__)")
    assert found.stdout.split() == ["False", "aigc_fast.models"], found.stderr


FORKED = {
    "ranges": (
        "x, w = torch.randn(8, 64, 16, 16), torch.randn(64, 32, 4, 4)\n"
        "call = lambda: aigc_fast.functional.conv_transpose2d(x, w, stride=2, padding=1)\n"
    ),
    "a team": (
        "x, module = torch.randn(20, 8, 160), aigc_fast.nn.LSTM(160, 160).requires_grad_(False)\n"
        "call = lambda: module(x)[0]\n"
    ),
}


@needs_native
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("kind", FORKED)
def test_a_forked_child_after_a_parallel_call_finishes(kind: str) -> None:
    found = python(
        "import os, signal, numpy, torch, aigc_fast, aigc_fast.nn\n"
        "torch.set_num_threads(2)\n"
        f"{FORKED[kind]}"
        "with aigc_fast.backend('cpu'):\n"
        "    expected = call().numpy()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(30)\n"
        "        os._exit(0 if numpy.abs(call().numpy() - expected).max() < 1e-5 else 1)\n"
        "    print(os.waitpid(child, 0)[1])\n"
    )
    assert found.stdout.strip() == "0", found.stdout + found.stderr
