"""The best continuations of beams."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.decode.choice import unavailable
from aigc_fast.runtime import native


def best_continuations(logits: Tensor, scores: Tensor, count: int, banned: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest sums of a token's log-probability and its beam's score.

    Args:
        logits: (prompts * beams, vocabulary); overwritten.
        scores: (prompts, beams), of the same dtype.
        count: of continuations wanted for each prompt, at most beams * vocabulary.
        banned: (2, any), int64: rows and tokens that are out of question.

    Returns:
        (prompts, count), the sums, the greatest first; and their places among a prompt's beams * vocabulary, int64.
    """
    if logits.is_cpu and logits.dtype == torch.float32 and unavailable() is None:
        sums, places = logits.new_empty(len(scores), count), scores.new_empty(len(scores), count, dtype=torch.int64)
        given = logits.contiguous(), scores.contiguous(), banned.contiguous()
        if native.kernels().decode_candidates(*given, sums, places):
            return sums, places
    logarithms = logits.log_softmax(-1)
    logarithms[banned[0], banned[1]] = -torch.inf
    return tuple((logarithms.view(*scores.shape, -1) + scores[:, :, None]).flatten(1).topk(count))
