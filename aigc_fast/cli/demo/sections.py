"""What the page says, section by section."""

from __future__ import annotations

import platform
from html import escape

import torch

from aigc_fast import __version__
from aigc_fast.cli.demo.answer import Answered
from aigc_fast.cli.demo.compare import Comparison
from aigc_fast.cli.demo.learn import Learned
from aigc_fast.cli.demo.listen import Heard
from aigc_fast.cli.demo.page import metrics_table, parity_cards, passage, picture, player, timing_table
from aigc_fast.cli.demo.speak import BEAMS, CALL, NAME, PROMPT, Spoken
from aigc_fast.cli.demo.speak import TIMED as SPOKEN
from aigc_fast.cli.demo.watch import Watched
from aigc_fast.cli.demo.write import CELLS, NGRAM, TIMED, Written, run_name
from aigc_fast.data import ImageDataset, SoundDataset, TextDataset, VideoDataset
from aigc_fast.media.audio import AUDIO
from aigc_fast.media.images import IMAGES
from aigc_fast.media.video import VIDEO
from aigc_fast.page import Page, cards, details, figures, text_table
from aigc_fast.page.chart import bar_chart, line_chart
from aigc_fast.runtime import native
from aigc_fast.runtime.machine import processor_name
from aigc_fast.training import TrainingResult


def machine(device: torch.device) -> str:
    """One line about what all this was measured on."""
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{name}; torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    level = native.level() or "no native library"
    threads = torch.get_num_threads()
    return (
        f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}, {level}; torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def new_page(device: torch.device) -> Page:
    """The page's head."""
    return Page(
        f"aigc_fast {__version__}: demo",
        f"Measured, trained and drawn in one run of aigc-fast demo on: {machine(device)}.",
    )


def add_comparison(page: Page, comparison: Comparison) -> None:
    """The stock DCGAN, before and after `optimize`."""
    page.heading("The same model, sooner")
    page.paragraph(
        "A DCGAN, a ConvVAE, a HiFi-GAN vocoder and the decoder of latent diffusion's VAE, written with nothing but "
        "torch.nn, go through aigc_fast.optimize, which swaps their layers in place. The numbers come first, then the "
        "time."
    )
    page.add("<pre>model = aigc_fast.optimize(model)</pre>", parity_cards(comparison))
    page.paragraph(
        "Every line is measured in this run: the candidates take turns, and the quartiles show how steady the machine "
        "was. Speed is against the faster of PyTorch's two layouts; lines below 1 are slower than PyTorch. "
        "Errors are relative, against float64: of the images for generation, of the worst gradient for training steps, "
        "of the worst of output and gradients for layers."
    )
    page.add(timing_table(comparison.rows))
    page.add(details("aigc_fast.report(model)", str(comparison.report)))


def _curves(result: TrainingResult, names: tuple[str, ...], title: str) -> str:
    rows = [row for row in result.rows if all(name in row for name in names)]
    return line_chart([row["step"] for row in rows], {name: [row[name] for row in rows] for name in names}, title)


def _how_long(result: TrainingResult) -> str:
    return f"{result.steps} steps in {result.seconds:.0f} s, {result.items_per_second:.0f} a second"


def add_gan(page: Page, learned: Learned, dataset: ImageDataset) -> None:
    """What the DCGAN learned."""
    pictures = learned.pictures
    page.heading("A DCGAN learns to draw digits")
    page.paragraph(
        f"Conditional DCGAN on the {len(dataset)} digits that come with the package: {_how_long(learned.result)}. "
        "None of these digits was written by anyone."
    )
    last, early = learned.result.steps, int(pictures["early"].stem.split("-")[1])
    page.add(
        figures(
            [
                picture(pictures["samples"], f"After {last} steps: one class per column"),
                picture(pictures["early"], f"The same latents after {early} steps"),
            ]
        ),
        figures(
            [
                picture(pictures["interpolation"], "From one class and latent to another: 0 to 1, 3 to 4, 6 to 7"),
                _curves(learned.result, ("d_loss", "g_loss"), "Losses of discriminator and generator"),
            ]
        ),
        figures(
            [
                _curves(
                    learned.result,
                    ("diversity",),
                    "Diversity of a batch: about 1 is the data's own, near 0 is mode collapse",
                )
            ]
        ),
    )


def add_vae(page: Page, learned: Learned) -> None:
    """What the ConvVAE learned."""
    pictures = learned.pictures
    page.heading("A ConvVAE lays the digits out on a map")
    page.paragraph(f"Convolutional VAE with a 2-d latent: {_how_long(learned.result)}.")
    page.add(
        figures(
            [
                picture(pictures["manifold"], "The latent plane: equal steps of probability, both ways"),
                picture(pictures["samples"], "Random samples"),
            ]
        ),
        figures(
            [
                picture(pictures["reconstructions"], "Training digits, and below each what two numbers keep of it"),
                _curves(learned.result, ("kl",), "KL divergence of the code from the prior, nats per image"),
                _curves(learned.result, ("reconstruction",), "Reconstruction error, nats per image"),
            ]
        ),
    )


def add_quality(page: Page, gan: Learned, vae: Learned) -> None:
    """The metrics of both."""
    page.heading("How good, how varied, how original")
    page.paragraph(
        f"{gan.report.count} images of each model against the {gan.report.training_count} training images, on the "
        "features of a small digit classifier."
    )
    page.add(metrics_table({"DCGAN": gan.report, "ConvVAE": vae.report}, IMAGES.rows))
    classes = [str(index) for index in range(len(gan.report.class_histogram))]
    shares = {"DCGAN": gan.report.class_histogram, "ConvVAE": vae.report.class_histogram}
    page.add(
        figures(
            [
                picture(
                    gan.pictures["neighbours"], "DCGAN: generated digits, and below each its nearest training digit"
                ),
                picture(vae.pictures["neighbours"], "ConvVAE: likewise"),
            ]
        ),
        figures([bar_chart(shares, classes, "Share of each digit among the generated images, by the classifier")]),
    )


def add_sounds(page: Page, heard: Heard, dataset: SoundDataset) -> None:
    """What the vocoder learned."""
    page.heading("A vocoder learns to sing and to pluck")
    page.paragraph(
        "A source and a filter: pulses and noise through a recursion whose coefficients change as the sound goes on. "
        f"A small VAE draws their frames, trained through the recursion on the {len(dataset)} {dataset.name} that "
        f"the package makes itself: {_how_long(heard.result)}."
    )
    sounds, classes = heard.sounds, ", ".join(dataset.class_names)
    page.add(
        figures(
            [
                player(sounds["samples"], f"Generated, a class each: {classes}"),
                player(sounds["others"], "The same classes with another seed"),
            ]
        ),
        figures(
            [
                player(sounds["original"], f"Training sounds: {classes}"),
                player(sounds["resynthesis"], "The same, taken apart by linear prediction and put together again"),
            ]
        ),
        figures(
            [
                player(sounds["walk"], f"From one random latent to another, in class {dataset.class_names[0]}"),
                _curves(heard.result, ("reconstruction",), "Distance of spectra and frames, in twentieths"),
            ]
        ),
        metrics_table({"vocoder": heard.report}, AUDIO.rows),
    )


def add_text(page: Page, written: Written, dataset: TextDataset) -> None:
    """What the character models learned."""
    page.heading("Three cells learn to write")
    lstm, ngram = written.results[run_name("lstm")], written.results[NGRAM]
    page.paragraph(
        f"Character models on {dataset.summary}. Every cell has {lstm.steps} steps and "
        f"{lstm.model.config['hidden']} units: the LSTM took {lstm.seconds:.0f} s, "
        f"{lstm.items_per_second:.0f} {lstm.unit} a second. The line to beat is an n-gram model of order "
        f"{ngram.model.order} with Kneser-Ney smoothing; the LSTM passes it when it is trained as long as aigc-fast "
        "train char-rnn does."
    )
    fast, cell = (1000 * TIMED / written.speed[name].median for name in ("fast", "cell"))
    page.add(
        cards(
            [
                (f"{fast:,.0f}", "characters a second from the LSTM, one native call for all of them"),
                (f"{cell:,.0f}", "from the same weights in a loop over torch.nn.LSTMCell and torch.multinomial"),
                (f"{fast / cell:.1f}×", "as many"),
            ]
        ),
        figures([_text_curves(written)]),
        figures(
            [
                passage(path, f"{name}: {_bits(written.results[name]):.2f} bits per held-out character")
                for name, path in written.texts.items()
            ]
        ),
    )


def _bits(result: TrainingResult) -> float:
    return result.rows[-1]["held_out"]


def _text_curves(written: Written) -> str:
    curves = {cell: written.results[run_name(cell)].rows for cell in CELLS}
    measured = {cell: [row for row in rows if "held_out" in row] for cell, rows in curves.items()}
    steps = [row["step"] for row in measured[CELLS[0]]]
    lines = {cell: [row["held_out"] for row in rows] for cell, rows in measured.items()}
    ngram = written.results[NGRAM]
    lines[f"{ngram.model.order}-gram"] = [_bits(ngram)] * len(steps)
    return line_chart(steps, lines, "Bits per held-out character", smooth=False)


def add_gpt2(page: Page, spoken: Spoken, dataset: TextDataset) -> None:
    """What the GPT-2 learned."""
    page.heading("A small GPT-2 learns to speak")
    model, result = spoken.result.model, spoken.result
    page.paragraph(
        f"A GPT-2 of {sum(each.numel() for each in model.parameters()) / 1e6:.1f} million parameters and "
        f"{dataset.tokenizer.vocab_size} byte-level subwords, on the same text: {result.steps} steps took "
        f"{result.seconds:.0f} s. Its weights are those of transformers' GPT2LMHeadModel; it generates on the same "
        "engine that aigc_fast.optimize puts under transformers' own models."
    )
    rates = {name: 1000 * SPOKEN / timing.median for name, timing in spoken.speed.items()}
    facts = [
        (f"{spoken.perplexity.bits_per_byte:.2f}", "bits per byte of text that was held out"),
        (f"{spoken.perplexity.per_byte:.2f}", "its perplexity per byte"),
    ]
    for name, words in (("greedy", "one by one"), ("beams", f"by {CALL['num_beams']} beams")):
        theirs = rates.get(f"{name}, transformers")
        compared = "" if theirs is None else f", {rates[name] / theirs:.1f}× transformers' {theirs:,.0f}"
        facts.append((f"{rates[name]:,.0f}", f"tokens a second, {words}{compared}"))
    asked = ", ".join(f"{name}={value}" for name, value in CALL.items())
    captions = {BEAMS: f"generate({PROMPT!r}, {asked})", NAME: "Drawn at temperature 0.7"}
    page.add(
        cards(facts),
        figures([_held_out_curve(result)]),
        figures([passage(spoken.texts[name], caption) for name, caption in captions.items()]),
    )


def _held_out_curve(result: TrainingResult) -> str:
    measured = [row for row in result.rows if "held_out" in row]
    lines = {"GPT-2": [row["held_out"] for row in measured]}
    return line_chart([row["step"] for row in measured], lines, "Bits per held-out byte", smooth=False)


def add_answers(page: Page, answered: Answered) -> None:
    """What the encoder-decoder learned."""
    result, dataset = answered.result, answered.dataset
    page.heading("An encoder-decoder says what functions do")
    page.paragraph(
        f"A Transformer, of {result.model.config['num_encoder_layers']} and "
        f"{result.model.config['num_decoder_layers']} layers, on {dataset.summary}: from the name and the signature of "
        f"a function to the first line of its documentation. {_how_long(result)}. Below, functions of modules that it "
        "has not seen. What it says sounds right more often than it is, for it has never read anything but such "
        "lines."
    )
    rows = [
        (source, target, greedy, beams)
        for (source, target), greedy, beams in zip(answered.pairs, answered.greedy, answered.beams, strict=True)
    ]
    page.add(
        figures([_curves(result, ("loss",), "Loss of the encoder-decoder, with smoothed labels")]),
        text_table(("function", "its documentation", "greedy", f"{answered.width} beams"), rows),
    )


def add_video(page: Page, watched: Watched, dataset: VideoDataset) -> None:
    """What the generator of video learned."""
    page.heading("A ConvLSTM foretells where digits go")
    result, given, report = watched.result, watched.result.model.given, watched.report
    page.paragraph(
        f"Convolutions, a recurrent core and transposed convolutions on {len(dataset)} clips of {dataset.name}, which "
        f"the package makes itself: {_how_long(result)}. Of clips that it has never seen it is given {given} frames "
        "and goes on by itself: in the frames that follow, the displacement of what it draws is off by "
        f"{_pixels(report.displacement_by_frame)} pixels, and its centre, where these add up, by "
        f"{_pixels(report.drift_by_frame)}."
    )
    page.add(
        figures(
            [
                picture(watched.videos["foretold"], f"Above, what came; below, what it foretold after {given} frames"),
                picture(watched.videos["drawn"], "Clips of nothing but chance"),
            ]
        ),
        figures(
            [
                picture(
                    watched.videos["foretold"].with_suffix(".png"),
                    "Frame by frame: a clip, and below it what was foretold",
                ),
                _curves(result, ("reconstruction",), "Reconstruction error, nats per frame"),
            ]
        ),
        metrics_table({"video": report}, VIDEO.rows),
    )


def _pixels(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def add_commands(
    page: Page,
    gan: Learned,
    vae: Learned,
    heard: Heard,
    written: Written,
    spoken: Spoken,
    answered: Answered,
    watched: Watched,
    seconds: float,
) -> None:
    """How to go on."""
    page.heading("Go on from here")
    page.paragraph(
        "The models are beside this page; every PNG, WAV and APNG carries its model, seed and settings in it, a text "
        "in a .json beside it."
    )
    commands = [
        f"aigc-fast generate {gan.result.model_path} --class 7 --seed 1",
        f"aigc-fast generate {vae.result.model_path} --what manifold",
        f"aigc-fast generate {heard.result.model_path} --seed 1",
        f"aigc-fast generate {written.results[run_name('lstm')].model_path} --prompt 'The ' --temperature 0.7",
        f"aigc-fast generate {spoken.result.model_path} --prompt '{PROMPT}' --num-beams 5 --no-repeat-ngram-size 2",
        f"aigc-fast generate {answered.result.model_path} --prompt 'sort(key=None)' --num-beams 4",
        f"aigc-fast generate {watched.result.model_path} --out out/video.gif",
        f"aigc-fast evaluate {gan.result.model_path}",
        f"aigc-fast provenance {gan.pictures['samples']}",
        "aigc-fast train dcgan --conditional",
        "aigc-fast train char-rnn",
        "aigc-fast train gpt2",
        "aigc-fast train seq2seq",
        "aigc-fast train video",
        "aigc-fast doctor",
    ]
    page.add(f"<pre>{escape(chr(10).join(commands))}</pre>")
    page.add(
        f"<footer>All of it took {seconds:.0f} seconds. Images, sounds, texts and clips on this page are AI-generated."
        "</footer>"
    )
