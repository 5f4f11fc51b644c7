"""Models of text, and the tokenizers that are saved with them."""

from aigc_fast.models.text.base import NetworkTextModel, TextModel
from aigc_fast.models.text.char_rnn import CharRNN
from aigc_fast.models.text.decoder import DecoderModel
from aigc_fast.models.text.elman import ElmanCell
from aigc_fast.models.text.gpt2 import GPT2
from aigc_fast.models.text.llama import Llama
from aigc_fast.models.text.ngram import NGram
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.models.text.seq2seq import Seq2SeqTransformer
from aigc_fast.models.text.subwords import BPETokenizer, IdTokenizer
from aigc_fast.models.text.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer, tokenizer_from

TOKENIZERS: dict[str, type[Tokenizer]] = {
    tokenizer.kind: tokenizer for tokenizer in (CharTokenizer, ByteTokenizer, WordTokenizer, BPETokenizer, IdTokenizer)
}
"""Every tokenizer by its kind."""

__all__ = [
    "GPT2",
    "TOKENIZERS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharRNN",
    "CharTokenizer",
    "DecoderModel",
    "ElmanCell",
    "IdTokenizer",
    "Llama",
    "NGram",
    "NetworkTextModel",
    "Sampling",
    "Seq2SeqTransformer",
    "TextModel",
    "Tokenizer",
    "WordTokenizer",
    "tokenizer_from",
]
