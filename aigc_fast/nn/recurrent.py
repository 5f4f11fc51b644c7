"""`nn.RNN`, `nn.LSTM`, `nn.GRU` and their cells on `aigc_fast.functional`'s whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from aigc_fast.nn.compiled import welcome
from aigc_fast.nn.drop_in import drop_in, overloaded
from aigc_fast.ops.recurrent import choice
from aigc_fast.ops.recurrent.functional import recur, recur_known, step, step_known
from aigc_fast.ops.recurrent.sampling import sample_tokens
from aigc_fast.ops.recurrent.sizes import CODES, WITH_CELLS
from aigc_fast.runtime.operator import is_traced_by_dynamo
from aigc_fast.runtime.weights import AS_THEY_ARE, weights_code


def _has_cells(module: torch.nn.Module) -> bool:
    return CODES[module.mode] in WITH_CELLS


def _zeros(module: torch.nn.RNNBase, input: Tensor, batch: int) -> Any:
    parts = module.num_layers * (2 if module.bidirectional else 1)
    hidden = torch.zeros(parts, batch, module.proj_size or module.hidden_size, dtype=input.dtype, device=input.device)
    if not _has_cells(module):
        return hidden
    return hidden, torch.zeros(parts, batch, module.hidden_size, dtype=input.dtype, device=input.device)


def _unsqueezed(module: torch.nn.RNNBase, hx: Any, is_batched: bool) -> Any:
    """The states with a dimension for the batch."""
    states, dim = hx if _has_cells(module) else (hx,), 3 if is_batched else 2
    if any(state.dim() != dim for state in states):
        shown = ", ".join(f"{state.dim()}-D" for state in states)
        kind = "batched 3-D" if is_batched else "unbatched 2-D"
        raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {shown}")
    if is_batched:
        return hx
    return tuple(state.unsqueeze(1) for state in states) if _has_cells(module) else hx.unsqueeze(1)


def _params(module: torch.nn.Module, names: Sequence[Sequence[str]]) -> list[Tensor]:
    # By name: the list that a module keeps misses what parametrizations compute, whose names are no parameters' then.
    own = module._parameters
    try:
        return [own[name] for part in names for name in part]
    except KeyError:
        return [getattr(module, name) for part in names for name in part]


def _known(module: torch.nn.Module, input: Tensor, hx: Any, has_cells: bool) -> tuple[Any, Any] | None:
    """What a call like one before gives, where nothing drops elements."""
    if module.training and module.dropout:
        return None
    # Equal to `Options`, which take longer to make.
    numbers = module.num_layers, module.bidirectional, module.bias, module.batch_first, module.eps
    options, states = (CODES[module.mode], *numbers), hx if has_cells else (hx,)
    weights = AS_THEY_ARE if module.weights is None else weights_code(module)
    found = recur_known(input, states, _params(module, module._all_weights), options, weights)
    return found and (found[0], found[1:] if has_cells else found[1])


def forward(module: torch.nn.Module, input: Any, hx: Any) -> tuple[Any, Any]:
    """PyTorch's forward of its recurrent modules, and of such as have the same attributes, around the op."""
    is_packed, has_cells = isinstance(input, PackedSequence), _has_cells(module)
    if hx is not None and type(input) is Tensor and type(hx) is (tuple if has_cells else Tensor):
        found = _known(module, input, hx, has_cells)
        if found is not None:
            return found
    data, batch_sizes, sorted_indices, unsorted_indices = input if is_packed else (input, None, None, None)
    if not is_packed and data.dim() not in (2, 3):
        raise ValueError(f"{module._get_name()}: Expected input to be 2D or 3D, got {data.dim()}D instead")
    is_batched, batch_dim = is_packed or data.dim() == 3, 0 if module.batch_first else 1
    if not is_batched:
        data = data.unsqueeze(batch_dim)
    if hx is None:
        hx = _zeros(module, data, batch_sizes[0] if is_packed else data.size(batch_dim))
    else:
        if not is_packed:
            hx = _unsqueezed(module, hx, is_batched)
        hx = _called(module, "permute_hidden", hx, sorted_indices)
    # Of which torch 2.6 traces no call; in a graph the op checks the sizes.
    if not is_traced_by_dynamo():
        module.check_forward_args(data, hx, batch_sizes)
    numbers = module.bias, module.num_layers, module.dropout, module.training, module.bidirectional, module.batch_first
    tensors, weights = (data, batch_sizes, hx, _params(module, module._all_weights)), weights_code(module)
    output, *last = recur(CODES[module.mode], *tensors, *numbers, weights=weights, eps=module.eps)
    if is_packed:
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    elif not is_batched:
        output, last = output.squeeze(batch_dim), [state.squeeze(1) for state in last]
    last = tuple(last) if has_cells else last[0]
    return output, _called(module, "permute_hidden", last, unsorted_indices)


def _called(module: torch.nn.Module, name: str, *args: Any) -> Any:
    """What a method gives, replaced on the module or not."""
    if name in module.__dict__:
        return getattr(module, name)(*args)
    # By the class: torch 2.6 compiles no call of an inherited method of a module of torch.nn.
    return getattr(type(module), name)(module, *args)


class Stepwise:
    """Stepping and sampling, for recurrent modules.

    Attributes:
        weights: "fp32", "bf16", "int8" or "int4": the format of the weights in float32 calls that need no gradients;
            None for the parameters as they are. The parameters themselves do not change.
        eps: added to the variances, in modules with layer norms.
    """

    weights: str | None = None
    eps: float = 0.0

    def step(self, input: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step of all layers, as in `forward` of a sequence of one step.

        Args:
            input: (B, I), or (I,) for a single sequence.
            state: as in `forward`; zeros by default.

        Returns:
            The output, (B, size) or (size,), and the state after the step.

        Raises:
            ValueError: if `input` has other dimensions, or the module is bidirectional.
        """
        if self.bidirectional:
            raise ValueError(f"{self!r} is bidirectional: one step would need the whole sequence")
        if input.dim() not in (1, 2):
            raise ValueError(f"input has shape {tuple(input.shape)}: expected (B, I) or (I,)")
        dim = 1 if input.dim() == 2 and self.batch_first else 0
        output, state = self(input.unsqueeze(dim), state)
        return output.squeeze(dim), state

    def sample(
        self,
        embedding: torch.nn.Embedding,
        head: torch.nn.Linear,
        tokens: Tensor,
        state: Any = None,
        length: int = 1,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
        position: int = 0,
    ) -> tuple[Tensor, Any]:
        """Samples a sequence of tokens after a prompt; on the CPU in float32, one native call for every 1,024 of them.

        Equivalent to a loop of ``embedding``, this module, ``head`` and ``torch.multinomial``, in eval mode and without
        gradients. The tokens are the same for any number of threads.

        Args:
            embedding: of the module's input.
            head: from the module's output to logits, of at most as many tokens as `embedding` has.
            tokens: the prompt, int64 (T,), T at least 1.
            state: before the prompt, as in `forward` for one sequence; zeros by default.
            length: number of tokens to sample.
            temperature: what logits are divided by; 0 takes the most likely token.
            top_k: sample among this many of the most likely tokens, and any that tie with the last of them; all by
                default.
            top_p: sample among the fewest of the most likely tokens whose probabilities add up to this; all by default.
            generator: source of the key; by default torch's default generator of the device.
            key: of the draws, int64 (2,), in place of one from the generator.
            position: of the first draw among those of `key`: to continue after others.

        Returns:
            The tokens, int64 (length,), and the state after the prompt and all of them but the last. With that one as
            the prompt, `key` and the next `position`, another call continues as this one would have.

        Raises:
            ValueError: if shapes or options do not match, or the module is bidirectional; the message names the
                argument.
            TypeError: if `tokens` is not a Tensor, or an option not a number.
            IndexError: if `embedding` does not have a token.
            RuntimeError: if logits are NaN or infinite.
        """
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
        return sample_tokens(self, embedding, head, tokens, state, length, **options, key=key, position=position)


@welcome
@overloaded
@drop_in
class RNN(torch.nn.RNN, Stepwise):
    """`torch.nn.RNN`: the same constructor, parameters, `state_dict` keys and results; one call for all layers."""

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """See torch.nn.RNN."""
        return forward(self, input, hx)


@welcome
@overloaded
@drop_in
class LSTM(torch.nn.LSTM, Stepwise):
    """`torch.nn.LSTM`: the same constructor, parameters, `state_dict` keys and results; one call for all layers."""

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """See torch.nn.LSTM."""
        return forward(self, input, hx)


@welcome
@overloaded
@drop_in
class GRU(torch.nn.GRU, Stepwise):
    """`torch.nn.GRU`: the same constructor, parameters, `state_dict` keys and results; one call for all layers."""

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """See torch.nn.GRU."""
        return forward(self, input, hx)


_CELL_WEIGHTS = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")


def _cell(mode: str, module: torch.nn.RNNCellBase, input: Tensor, hx: Any) -> tuple[Tensor, ...] | None:
    """The states after one step; None where PyTorch's cell had better make it, or say what does not fit."""
    dim, code = input.dim(), CODES[mode]
    if dim not in (1, 2):
        return None
    params = _params(module, _CELL_WEIGHTS if module.bias else _CELL_WEIGHTS[:1])
    if dim == 2 and hx is not None:
        found = step_known(code, input, hx if mode == "LSTM" else (hx,), params)
        if found is not None:
            return found
    if choice.leave_step(code, input.shape[0] if dim == 2 else 1, module.input_size, module.hidden_size):
        return None
    if hx is None:
        zeros = torch.zeros(*input.shape[:-1], module.hidden_size, dtype=input.dtype, device=input.device)
        hx = (zeros, zeros) if mode == "LSTM" else zeros
    states = tuple(hx) if mode == "LSTM" else (hx,)
    if any(state.dim() != dim for state in states):
        return None
    if dim == 2:
        return step(code, input, states, params, module.bias)
    found = step(code, input[None], tuple(state[None] for state in states), params, module.bias)
    return found and tuple(state[0] for state in found)


@drop_in
class RNNCell(torch.nn.RNNCell):
    """`torch.nn.RNNCell`: the same constructor, parameters, `state_dict` keys and results."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """See torch.nn.RNNCell."""
        mode = f"RNN_{self.nonlinearity.upper()}"
        found = _cell(mode, self, input, hx) if mode in CODES else None
        return torch.nn.RNNCell.forward(self, input, hx) if found is None else found[0]


@drop_in
class LSTMCell(torch.nn.LSTMCell):
    """`torch.nn.LSTMCell`: the same constructor, parameters, `state_dict` keys and results."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See torch.nn.LSTMCell."""
        found = _cell("LSTM", self, input, hx)
        return torch.nn.LSTMCell.forward(self, input, hx) if found is None else found


@drop_in
class GRUCell(torch.nn.GRUCell):
    """`torch.nn.GRUCell`: the same constructor, parameters, `state_dict` keys and results."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """See torch.nn.GRUCell."""
        found = _cell("GRU", self, input, hx)
        return torch.nn.GRUCell.forward(self, input, hx) if found is None else found[0]
