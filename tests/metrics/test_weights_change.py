"""What another form of a model's weights changes, beside the same counted from the logits."""

from __future__ import annotations

import math

import pytest
import torch

from aigc_fast.errors import UserError
from aigc_fast.metrics import evaluate_text, weights_change
from aigc_fast.models import GPT2, CharRNN, CharTokenizer, Llama, NGram
from aigc_fast.runtime import native

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

TEXTS = ["the cat sat on the mat", "a dog", "the end of the cat"]
TOKENIZER = CharTokenizer.of(TEXTS)
MODELS = {
    "gpt2": lambda: GPT2(tokenizer=TOKENIZER, hidden=24, num_layers=2, num_heads=2, context=16),
    "llama": lambda: Llama(tokenizer=TOKENIZER, hidden=24, num_layers=2, num_heads=2, context=64, units=40),
    "char-rnn": lambda: CharRNN(tokenizer=TOKENIZER, hidden=24, embedding=12),
}


def model_of(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def logits_of(model, tokens):
    """Of a whole text, after its boundary."""
    inputs = torch.tensor([[model.tokenizer.start, *tokens[:-1]]])
    model.eval()
    with torch.no_grad():
        found = model(inputs)
    return (found[0] if isinstance(found, tuple) else found)[0].double().log_softmax(-1)


@pytest.mark.parametrize("name", MODELS)
def test_figures_are_those_of_the_logits(name):
    model = model_of(name)
    texts = [text[:15] for text in TEXTS]
    found = weights_change(model, texts, "int4")
    assert model.weights == found.weights == "int4"
    documents = [[*model.tokenizer.encode(text), model.tokenizer.boundary] for text in texts]
    nats = divergence = same = 0.0
    for tokens in documents:
        model.keep_weights(None)
        wanted = logits_of(model, tokens)
        model.keep_weights("int4")
        with torch.no_grad():
            parts = model.foreseen(torch.tensor(tokens))
            kept = torch.cat([rows for _, rows in parts]).double()
        nats -= wanted.gather(1, torch.tensor(tokens)[:, None]).sum().item()
        divergence += (wanted.exp() * (wanted - kept)).sum().item()
        same += (wanted.argmax(-1) == kept.argmax(-1)).sum().item()
    count = sum(map(len, documents))
    assert found.tokens == count
    assert found.before.nats == pytest.approx(nats, rel=1e-4)
    assert found.divergence == pytest.approx(divergence / count, rel=1e-3)
    assert found.agreement == pytest.approx(same / count)
    assert found.after.nats == pytest.approx(-model.score_all(texts), rel=1e-4)
    assert found.after.nats != pytest.approx(found.before.nats, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_smaller_weights_say_less_of_the_same(name):
    model = model_of(name)
    found = [weights_change(model, TEXTS, weights).divergence for weights in ("fp32", "bf16", "int8", "int4")]
    assert found == sorted(found)
    assert found[0] < 1e-7 < found[1]


def test_a_report_tells_of_weights_that_are_kept_otherwise():
    model = model_of("gpt2")
    plain = evaluate_text(TEXTS, TEXTS, TEXTS, model)
    assert plain.weights is plain.divergence is None
    model.keep_weights("int8")
    report = evaluate_text(TEXTS, TEXTS, TEXTS, model)
    change = weights_change(model, TEXTS, "int8")
    assert report.weights == "int8"
    assert (report.divergence, report.agreement) == (change.divergence, change.agreement)
    assert report.bits_per_byte_as_they_are == pytest.approx(plain.bits_per_byte)
    assert report.bits_per_byte == pytest.approx(change.after.bits_per_byte)
    assert report.perplexity_per_token == pytest.approx(math.exp(change.after.nats / change.tokens))


def test_models_that_cannot_keep_them_say_so():
    model = model_of("gpt2")
    with pytest.raises(ValueError, match="weights='int3'"):
        weights_change(model, TEXTS, "int3")
    hook = model.lm_head.register_forward_hook(lambda module, args, output: output)
    with pytest.raises(UserError, match="weights='int8': gpt2 generates in plain PyTorch: lm_head has hooks"):
        model.keep_weights("int8")
    hook.remove()
    model.keep_weights("int8")
    tokens = model.tokens_of(TEXTS)
    assert model.log_probabilities(tokens).requires_grad
    with pytest.raises(UserError, match="uses its weights as they are"):
        NGram(tokenizer=TOKENIZER).keep_weights("int8")
