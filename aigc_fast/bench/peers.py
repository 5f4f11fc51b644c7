"""Other packages that do the same: None where one is not installed, or does not compute on the default device."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

COMPILE = "AIGC_FAST_BENCH_COMPILE"
"""The environment variable that, set to 1, lets torch.compile take part: it takes seconds a line."""

PACKAGES = {
    "ONNX Runtime": "onnxruntime",
    "scipy": "scipy",
    "numba": "numba",
    "torchlpc": "torchlpc",
    "transformers": "transformers",
    "CTranslate2": "ctranslate2",
    "ik_llama.cpp": "ik-llama-cpp-python",
}
_IR_VERSION = 10

Recur = Callable[[Tensor, Tensor], Tensor]


def optional(name: str) -> ModuleType | None:
    """A module, None where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def _on_cpu() -> bool:
    return torch.get_default_device().type == "cpu"


def versions() -> dict[str, str]:
    """The peers' packages that are installed, with their versions."""
    found = {}
    for name, package in PACKAGES.items():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(package)
    return found


def missing() -> list[str]:
    """The peers' packages that are not installed, by the names under which pip finds them."""
    found = versions()
    return [package for name, package in PACKAGES.items() if name not in found]


def present(ways: dict[str, Any]) -> dict[str, Any]:
    """Those that there are."""
    return {name: way for name, way in ways.items() if way is not None}


def absent(ways: dict[str, Any]) -> tuple[str, ...]:
    """The names of those that there are not."""
    return tuple(name for name, way in ways.items() if way is None)


def compiled(call: Callable[[], Any]) -> Callable[[], Any] | None:
    """The call by torch.compile, where that was asked for."""
    return torch.compile(call) if os.environ.get(COMPILE) == "1" else None


def onnx_runtime(
    kind: str,
    inputs: dict[str, Tensor],
    weights: dict[str, Tensor],
    sizes: Sequence[int],
    opset: int,
    **attributes: Any,
) -> Callable[[], Sequence[Tensor]] | None:
    """ONNX Runtime on a model of one operator, on as many threads as torch has; it reads and fills torch's memory.

    Args:
        kind: the operator's name.
        inputs: by name, in the operator's order.
        weights: likewise, which follow them; the model holds these, and may pack them once.
        sizes: of the result.
        opset: ONNX's version.
        **attributes: the operator's.
    """
    onnx, runtime = optional("onnx"), optional("onnxruntime")
    if onnx is None or runtime is None or not _on_cpu():
        return None
    helper, output = onnx.helper, torch.empty(*sizes)
    arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    graph = helper.make_graph(
        [helper.make_node(kind, [*inputs, *weights], ["y"], **attributes)],
        "layer",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = _IR_VERSION
    options = runtime.SessionOptions()
    # Its threads would go on spinning, on cores that the others are timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu", 0, onnx.TensorProto.FLOAT, list(output.shape), output.data_ptr())

    def run() -> Sequence[Tensor]:
        session.run_with_iobinding(binding)
        return (output,)

    return run


Generate = Callable[..., Tensor]
_LLAMA = """
import sys
from ik_llama_cpp import IkLlama
model = IkLlama(sys.argv[1], n_ctx=1024, n_threads=int(sys.argv[2]), verbose=False)
for line in sys.stdin:
    count, *tokens = map(int, line.split())
    print("ids", *model.generate(tokens, max_tokens=count), flush=True)
"""


def ctranslate2(folder: Path, dtype: str, vocabulary: int) -> Generate | None:
    """CTranslate2's generator of a Hugging Face folder, which is converted beside it.

    Args:
        folder: of a model without a tokenizer.
        dtype: "float32" or "int8".
        vocabulary: tokens.
    """
    module = optional("ctranslate2")
    if module is None or optional("transformers") is None:
        return None
    converted = folder.parent / f"ctranslate2-{dtype}"
    if not converted.exists():
        named = _with_words(folder, vocabulary)
        module.converters.TransformersConverter(str(named)).convert(str(converted), quantization=dtype)
    generator = module.Generator(str(converted), compute_type=dtype, intra_threads=torch.get_num_threads())

    def generate(ids: Tensor, new: int, beams: int, ban: int) -> Tensor:
        words = [[f"t{token}" for token in row] for row in ids.tolist()]
        found = generator.generate_batch(
            words,
            max_length=new,
            min_length=new,
            beam_size=beams,
            no_repeat_ngram_size=ban,
            include_prompt_in_result=False,
        )
        return torch.tensor([each.sequences_ids[0] for each in found])

    return generate


def _with_words(folder: Path, vocabulary: int) -> Path:
    """The same folder with words for the tokens' numbers: CTranslate2 takes words alone."""
    named = folder.parent / "words"
    if named.exists():
        return named
    named.mkdir()
    for path in folder.iterdir():
        (named / path.name).symlink_to(path)
    transformers, tokenizers = optional("transformers"), optional("tokenizers")
    words = {f"t{token}": token for token in range(vocabulary)}
    last = f"t{vocabulary - 1}"
    model = tokenizers.models.WordLevel(words, unk_token=last)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), last)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), **special)
    fast.save_pretrained(named)
    return named


def llama_cpp(path: Path) -> Generate | None:
    """ik_llama.cpp on a GGUF file, in a process of its own: it brings its own OpenMP. None where it does not begin."""
    if importlib.util.find_spec("ik_llama_cpp") is None:
        return None
    command = [sys.executable, "-c", _LLAMA, str(path), str(torch.get_num_threads())]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )

    def generate(ids: Tensor, new: int) -> Tensor:
        child.stdin.write(" ".join(map(str, [new, *ids[0].tolist()])) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            if line.startswith("ids"):
                return torch.tensor([[int(word) for word in line.split()[1:]]])
        raise RuntimeError(f"ik_llama.cpp ended with {child.wait()}")

    weakref.finalize(generate, child.terminate)
    return generate


def torchlpc(varying: bool) -> Recur | None:
    """torchlpc's recursion: of coefficients of every step, in its own sign, or of one for all, in ours."""
    module = optional("torchlpc")
    if module is None:
        return None
    if varying:
        return module.sample_wise_lpc
    return lambda x, coeffs: module.sample_wise_lpc(x, (-coeffs).expand(*x.shape, coeffs.shape[-1]))


def scipy_lfilter() -> Recur | None:
    """scipy's filter, of one filter for all."""
    module = optional("scipy.signal")
    if module is None or not _on_cpu():
        return None

    def lfilter(x: Tensor, coeffs: Tensor) -> Tensor:
        denominator = torch.cat([coeffs.new_ones(1), -coeffs]).numpy()
        return torch.from_numpy(module.lfilter(coeffs.new_ones(1).numpy(), denominator, x.numpy()))

    return lfilter


def numba_loop() -> Recur | None:
    """The loop as numba compiles it, series in parallel, of one filter for all."""
    if optional("numba") is None or not _on_cpu():
        return None
    recur = _compiled_loop()
    return lambda x, coeffs: torch.from_numpy(recur(x.numpy(), coeffs.numpy()))


@cache
def _compiled_loop() -> Callable[..., Any]:
    import numba
    import numpy as np

    @numba.njit(parallel=True, fastmath=True)
    def recur(x, c):  # noqa: ANN001, ANN202
        y = np.empty_like(x)
        for b in numba.prange(x.shape[0]):
            for t in range(x.shape[1]):
                total = x[b, t]
                for i in range(min(c.shape[0], t)):
                    total += c[i] * y[b, t - 1 - i]
                y[b, t] = total
        return y

    return recur


def sample_wise(varying: bool) -> Recur:
    """The recursion as a loop over PyTorch's operators, with gradients: what is right, and slow."""

    def loop(x: Tensor, coeffs: Tensor) -> Tensor:
        order = coeffs.shape[-1]
        own = -coeffs if varying else coeffs
        outputs = [torch.zeros_like(x[:, 0])] * order
        for step in range(x.shape[1]):
            before = torch.stack(outputs[: -order - 1 : -1], -1)
            outputs.append(x[:, step] + (before * (own[:, step] if varying else own)).sum(-1))
        return torch.stack(outputs[order:], 1)

    return loop
