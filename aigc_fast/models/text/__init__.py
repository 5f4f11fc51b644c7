"""Models of text, and the tokenizers that are saved with them."""

from aigc_fast.models.text.base import TextModel
from aigc_fast.models.text.char_rnn import CharRNN
from aigc_fast.models.text.elman import ElmanCell
from aigc_fast.models.text.ngram import NGram
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.models.text.tokenizers import TOKENIZERS, ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_from

__all__ = [
    "TOKENIZERS",
    "ByteTokenizer",
    "CharRNN",
    "CharTokenizer",
    "ElmanCell",
    "NGram",
    "Sampling",
    "TextModel",
    "Tokenizer",
    "tokenizer_from",
]
