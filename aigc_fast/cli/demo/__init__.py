"""`aigc-fast demo`: what the package does, on one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from aigc_fast.bench.stock import BATCH
from aigc_fast.cli.app import console
from aigc_fast.cli.demo import sections
from aigc_fast.cli.demo.answer import ANSWERS, RUN, answer
from aigc_fast.cli.demo.compare import Comparison, Row, compare
from aigc_fast.cli.demo.learn import PICTURES, learn
from aigc_fast.cli.demo.listen import SOUNDS, listen
from aigc_fast.cli.demo.speak import NAME as GPT2
from aigc_fast.cli.demo.speak import SAYINGS, speak
from aigc_fast.cli.demo.watch import VIDEOS, watch
from aigc_fast.cli.demo.write import TEXTS, write
from aigc_fast.cli.options import Device, Overwrite, chosen_device, new_file
from aigc_fast.data import digits, load_pairs, load_sounds, load_text, moving_digits
from aigc_fast.files import make_folder
from aigc_fast.generation.text import record_path
from aigc_fast.models import BPETokenizer
from aigc_fast.training.folder import RunFolder

GAN_STEPS = 850
GAN_MODEL = {"width": 32, "discriminator_strides": (2, 2), "spectral_norm": True, "dropout": 0.0}
GAN_TRAINING = {"loss": "hinge", "learning_rate": 1e-3, "discriminator_learning_rate": 2e-3}
VAE_STEPS = 750
VOCODER_STEPS = 150
TEXT_STEPS = 600
GPT2_STEPS = 250
GPT2_VOCABULARY = 1024
ANSWER_STEPS = 600
VIDEO_STEPS = 400
VIDEO_MODEL = {"width": 16, "hidden": 32}
VIDEO_FRAMES = 12
SECONDS_PER_ROW = 1.0
QUICK_STEPS = 10
QUICK_SECONDS = 0.02
QUICK_BATCH = 8
QUICK_SOUND = 0.1
QUICK_VOCABULARY = 300
QUICK_CLIPS = 40
QUICK_VIDEO = {"width": 8, "hidden": 8}
PAGE = "index.html"

Out = Annotated[Path, typer.Option(help="Folder for the page, the images and the models.")]
GanSteps = Annotated[int, typer.Option(min=10, help="Training steps of the DCGAN.")]
VaeSteps = Annotated[int, typer.Option(min=10, help="Training steps of the ConvVAE.")]
VocoderSteps = Annotated[int, typer.Option(min=10, help="Training steps of the vocoder.")]
TextSteps = Annotated[int, typer.Option(min=10, help="Training steps of each character model.")]
Gpt2Steps = Annotated[int, typer.Option(min=10, help="Training steps of the GPT-2.")]
AnswerSteps = Annotated[int, typer.Option(min=10, help="Training steps of the encoder-decoder.")]
VideoSteps = Annotated[int, typer.Option(min=10, help="Training steps of the generator of video.")]
Seconds = Annotated[float, typer.Option(min=0.01, max=60, help="Time to measure each line of the table for.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Only try that everything runs: ten steps, small batches, rough times.")
]


def demo(
    out: Out = Path("out/demo"),
    gan_steps: GanSteps = GAN_STEPS,
    vae_steps: VaeSteps = VAE_STEPS,
    vocoder_steps: VocoderSteps = VOCODER_STEPS,
    text_steps: TextSteps = TEXT_STEPS,
    gpt2_steps: Gpt2Steps = GPT2_STEPS,
    answer_steps: AnswerSteps = ANSWER_STEPS,
    video_steps: VideoSteps = VIDEO_STEPS,
    seconds_per_row: Seconds = SECONDS_PER_ROW,
    quick: Quick = False,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Make stock models faster, train on digits, sounds, text and video, and show and play it all on one page.

    A few minutes on two cores; the page is out/demo/index.html.
    """
    place = chosen_device(device)
    _check_free(out, overwrite)
    batch = BATCH
    if quick:
        gan_steps = vae_steps = vocoder_steps = text_steps = QUICK_STEPS
        gpt2_steps = answer_steps = video_steps = QUICK_STEPS
        seconds_per_row, batch = QUICK_SECONDS, QUICK_BATCH
    start = time.perf_counter()
    folder, dataset, sounds = make_folder(out), digits(), load_sounds(seconds=QUICK_SOUND if quick else 1.0)
    texts = load_text()
    clips = moving_digits(QUICK_CLIPS, frames=VIDEO_FRAMES) if quick else moving_digits(frames=VIDEO_FRAMES)
    console.rule("Stock PyTorch models, before and after aigc_fast.optimize")
    comparison = compare(dataset.batch(slice(0, batch)).to(place), seconds_per_row, _tell_row, small=quick)
    _tell_parity(comparison)
    console.rule("Training on digits")
    conditional = {**GAN_MODEL, "num_classes": dataset.num_classes}
    gan = learn("dcgan", dataset, gan_steps, folder, console, conditional, GAN_TRAINING, place)
    vae = learn("conv-vae", dataset, vae_steps, folder, console, device=place)
    console.rule("Training on sounds")
    heard = listen(sounds, vocoder_steps, folder, console, place)
    console.rule("Training on text")
    written = write(texts, text_steps, folder, console, place, seconds_per_row)
    vocabulary = QUICK_VOCABULARY if quick else GPT2_VOCABULARY
    subwords = load_text(tokenizer=BPETokenizer.kind, vocab_size=vocabulary)
    spoken = speak(subwords, gpt2_steps, folder, console, place, seconds_per_row)
    console.rule("Training on pairs of texts")
    answered = answer(load_pairs(), answer_steps, folder, console, place)
    console.rule("Training on video")
    watched = watch(clips, video_steps, folder, console, place, QUICK_VIDEO if quick else VIDEO_MODEL)
    page = sections.new_page(place)
    sections.add_comparison(page, comparison)
    sections.add_gan(page, gan, dataset)
    sections.add_vae(page, vae)
    sections.add_quality(page, gan, vae)
    sections.add_sounds(page, heard, sounds)
    sections.add_text(page, written, texts)
    sections.add_gpt2(page, spoken, subwords)
    sections.add_answers(page, answered)
    sections.add_video(page, watched, clips)
    sections.add_commands(page, gan, vae, heard, written, spoken, answered, watched, time.perf_counter() - start)
    page.write(folder / PAGE)
    console.rule(f"{time.perf_counter() - start:.0f} seconds")
    console.print(f"Open {folder / PAGE}", soft_wrap=True)


def _check_free(folder: Path, overwrite: bool) -> None:
    """Checks, before any work is done, that nothing of anybody's is in the way."""
    files = [f"{model}-{name}.png" for model, names in PICTURES.items() for name in names]
    files += [f"vocoder-{name}.{kind}" for name in SOUNDS for kind in ("wav", "png")]
    files += [path.name for name in (*TEXTS, *SAYINGS) for path in (Path(f"{name}.txt"), record_path(f"{name}.txt"))]
    files += [f"video-{name}.{kind}" for name in VIDEOS for kind in ("apng", "png")]
    files += [path.name for path in (Path(ANSWERS), record_path(ANSWERS))]
    for name in (PAGE, *files):
        new_file(folder / name, overwrite)
    for model in (*PICTURES, "vocoder", *TEXTS, GPT2, RUN, "video"):
        RunFolder(folder / model).check_free(overwrite)


def _tell_row(row: Row) -> None:
    best = min(timing.median for timing in (row.stock, row.channels_last) if timing)
    console.print(f"{row.name:56}{best:9.3f} ms →{row.fast.median:9.3f} ms {row.ratio:6.2f}×", soft_wrap=True)


def _tell_parity(comparison: Comparison) -> None:
    parity = comparison.parity
    same = "identical" if parity.same_keys and parity.same_values and parity.loads_back else "DIFFERENT"
    errors = f"{parity.error:.1e} (PyTorch's own: {parity.stock_error:.1e})"
    console.print(f"Largest error against float64: {errors}; state_dict: {same}", soft_wrap=True)
