"""The page: gradio's components, and which function each event calls.

In: a ``Desk``. Out: ``Blocks`` with a tab for each verb that its model can do. Uploads go to a file
field and not into gradio's editor, which takes a minute for a photo: the screen gets a small
picture, and answers are made of the file itself. Whatever goes wrong is told in the tab's line of
words.
"""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.image_editor import EditorValue
from PIL import Image

from unigs.demo.desk import TASKS, Answer, Ask, Desk, Stopped, Stops
from unigs.demo.examples import Example, draw_examples
from unigs.demo.serve import USER
from unigs.demo.strokes import list_colours, read_mask, read_regions
from unigs.demo.uploads import (
    MAX_BYTES,
    SCREEN_PX,
    check_upload,
    read_upload,
    show_labels,
    show_upload,
)
from unigs.demo.values import list_legend, name_regions, split_words
from unigs.outputs import encode_grey16
from unigs.outputs.overlay import STRENGTH
from unigs.records import UnigsError, lacks_memory
from unigs.tasks import RECIPES
from unigs.verbs.gather import SUFFIXES

MOST_WAITING = 16
"""Requests in the queue; whoever comes then is told that it is full."""

SWEEP_S, AGE_S = 600, 3600
"""How often files are looked through, and the age at which they are removed."""

HOLE_COLOUR = "#ff00c8"

CSS = "footer {display: none}\n" + "\n".join(
    f"#word-{k} :is(input, textarea) {{border-left: 1em solid rgb{tuple(colour)} !important}}"
    for k, colour in enumerate(list_colours().tolist(), 1)
)

HINT = "Names, with commas between them; a model knows best those that it was trained on."


@dataclass(frozen=True, slots=True)
class Results:
    """Where a tab shows what came out.

    Attributes:
        key: of the tab; the ids of its elements begin with it.
        verb: that it carries out.
    """

    key: str
    verb: str
    run: gr.Button
    stop: gr.Button
    status: gr.Textbox
    drawn: gr.Image
    masks: gr.AnnotatedImage
    score: gr.Slider
    download: gr.DownloadButton
    answer: gr.State


def build_page(desk: Desk) -> gr.Blocks:
    """The page of a model; see :func:`launch_page`."""
    stops = Stops()
    examples = draw_examples(desk.room.with_name("examples"), desk.predictor.side_px)
    with gr.Blocks(title="UniGS", analytics_enabled=False, delete_cache=(SWEEP_S, AGE_S)) as page:
        about = html.escape(desk.describe())
        gr.HTML(f"<h1>UniGS</h1><p id='banner'>{about}</p>")
        if card := desk.read_card():
            with gr.Accordion("The model's card", open=False):
                gr.Textbox(card, lines=12, interactive=False, show_label=False)
        for verb in desk.verbs:
            with gr.Tab(verb.capitalize(), id=verb):
                TABS[verb](desk, stops, examples)
        page.unload(stop_session(stops))
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)


def launch_page(page: gr.Blocks, host: str, port: int, password: str | None) -> str:
    """Serve a page and nothing else, to nobody but those who reach ``host``; its address.

    Raises:
        UnigsError: the port is taken, or the host is none of this machine.
    """
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, auth=(USER, password) if password else None,
            share=False, inbrowser=False, prevent_thread_lock=True, quiet=True, css=CSS,
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
            mcp_server=False, max_file_size=MAX_BYTES,
            _frontend=False,  # or it visits itself, and on a busy machine asks for a public link
        )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise UnigsError(f"expected a free port, got '{error}', at {host} port {port}") from error
    return address


# --- tabs ----------------------------------------------------------------------------------------


def place_segment(desk: Desk, stops: Stops, examples: Sequence[Example]) -> None:
    """A picture; nothing else is asked."""
    with gr.Row():
        with gr.Column():
            upload, preview = place_upload("segment"), place_preview("segment")
            gr.Examples([[str(one.picture)] for one in examples], [upload])
        results = place_results("segment", "segment")
    preview_upload(upload, show_upload, preview, results)
    connect(desk, stops, results, [upload], lambda file: Ask(*read_upload(file)))


def place_find(desk: Desk, stops: Stops, examples: Sequence[Example]) -> None:
    """A picture and words."""
    with gr.Row():
        with gr.Column():
            upload, preview = place_upload("find"), place_preview("find")
            words = place_words("find")
            gr.Examples([[str(one.picture), one.thing] for one in examples], [upload, words])
        results = place_results("find", "find")
    preview_upload(upload, show_upload, preview, results)
    read = lambda file, text: Ask(*read_upload(file), split_words(text))
    connect(desk, stops, results, [upload, words], read)


def place_inpaint(desk: Desk, stops: Stops, examples: Sequence[Example]) -> None:
    """A picture, a hole painted over it, and words."""
    with gr.Row():
        with gr.Column():
            upload = place_upload("inpaint")
            editor = place_editor("inpaint", "Paint over what is to be filled", [HOLE_COLOUR])
            words = place_words("inpaint")
            gr.Examples([[str(one.picture), one.thing] for one in examples], [upload, words])
        results = place_results("inpaint", "inpaint")
    preview_upload(upload, lambda path: lay_under(show_upload(path)), editor, results)

    def read(file: str | None, painted: dict[str, Any], text: str) -> Ask:
        name, data = read_upload(file)
        size = check_upload(Path(str(file)))
        return Ask(name, data, split_words(text), read_mask(painted["layers"], size))

    connect(desk, stops, results, [upload, editor, words], read)


def place_paint(desk: Desk, stops: Stops, examples: Sequence[Example]) -> None:
    """Regions in the colours of brushes with a name each, or a label map with names."""
    with gr.Tab("By brush"):
        place_brushes(desk, stops)
    with gr.Tab("By a label map"), gr.Row():
        with gr.Column():
            upload, preview = place_upload("map", "Label map"), place_preview("map")
            words = place_words("map")
            rows = [[str(one.labels), ", ".join(one.names)] for one in examples]
            gr.Examples(rows, [upload, words])
        results = place_results("map", "paint")
        preview_upload(upload, show_labels, preview, results)
        read = lambda file, text: Ask(*read_upload(file), split_words(text))
        connect(desk, stops, results, [upload, words], read)


def place_brushes(desk: Desk, stops: Stops) -> None:
    """Regions by brush; they are drawn at the size that the model learnt."""
    colours = list_colours()
    with gr.Row():
        with gr.Column():
            names = [f"rgb{tuple(colour)}" for colour in colours.tolist()]
            ground = lay_under(Image.new("RGB", (SCREEN_PX, SCREEN_PX), "white"))
            editor = place_editor(
                "paint", "Paint each entity in a colour of its own", names, ground
            )
            with gr.Row():
                words = [
                    gr.Textbox(label=f"Colour {k}", elem_id=f"word-{k}", min_width=120)
                    for k in range(1, len(colours) + 1)
                ]
        results = place_results("paint", "paint")

    def read(painted: dict[str, Any], *texts: str) -> Ask:
        regions = read_regions(painted["layers"], colours)
        side = (desk.predictor.side_px,) * 2
        labels = np.asarray(Image.fromarray(regions).resize(side, Image.Resampling.NEAREST))
        return Ask("regions.png", encode_grey16(labels), name_regions(labels, texts))

    connect(desk, stops, results, [editor, *words], read)


TABS: dict[str, Callable[[Desk, Stops, Sequence[Example]], None]] = {
    "segment": place_segment,
    "find": place_find,
    "inpaint": place_inpaint,
    "paint": place_paint,
}


# --- components ----------------------------------------------------------------------------------


def place_upload(key: str, label: str = "Picture") -> gr.File:
    return gr.File(label=label, file_types=sorted(SUFFIXES), height=120, elem_id=f"{key}-upload")


def place_preview(key: str) -> gr.Image:
    return gr.Image(
        label="Shown small; the answer is made of the file", interactive=False, format="png",
        buttons=[], height=360, elem_id=f"{key}-preview",
    )  # fmt: skip


def place_words(key: str) -> gr.Textbox:
    return gr.Textbox(label="Words", placeholder="heart, moon", info=HINT, elem_id=f"{key}-words")


def place_editor(
    key: str, label: str, colours: list[str], ground: EditorValue | None = None
) -> gr.ImageEditor:
    """A canvas to paint on in some colours and nothing else; it takes no upload."""
    brush = gr.Brush(default_size=40, colors=list(colours), color_mode="fixed")
    return gr.ImageEditor(
        ground, label=label, sources=(), transforms=(), layers=False, brush=brush, format="png",
        buttons=[], canvas_size=(SCREEN_PX, SCREEN_PX), height=560, elem_id=f"{key}-editor",
    )  # fmt: skip


def place_results(key: str, verb: str) -> Results:
    """Buttons, and what they lead to; a picture where the verb draws one."""
    draws = RECIPES[TASKS[verb]].draws_picture
    with gr.Column():
        with gr.Row():
            run = gr.Button(verb.capitalize(), variant="primary", elem_id=f"{key}-run")
            stop = gr.Button("Stop", variant="stop", elem_id=f"{key}-stop")
        return Results(
            key=key,
            verb=verb,
            run=run,
            stop=stop,
            status=gr.Textbox(label="Status", interactive=False, elem_id=f"{key}-status"),
            drawn=gr.Image(
                label="Picture", visible=draws, format="png", buttons=["download"], height=360,
                elem_id=f"{key}-drawn",
            ),
            masks=gr.AnnotatedImage(label="Masks", height=360, elem_id=f"{key}-masks"),
            score=gr.Slider(
                0, 1, 0, step=0.05, label="Masks of this score and above", elem_id=f"{key}-score"
            ),
            download=gr.DownloadButton(
                f"Files of unigs {verb}", interactive=False, elem_id=f"{key}-download"
            ),
            answer=gr.State(time_to_live=AGE_S),
        )  # fmt: skip


def preview_upload(
    upload: gr.File, show: Callable[[Path], Any], shown: gr.Component, results: Results
) -> None:
    """Show what was uploaded, or why it cannot be used."""

    def change(file: str | None) -> tuple[Any, str]:
        try:
            return (None if file is None else show(Path(file))), ""
        except UnigsError as error:
            return None, str(error)

    upload.change(change, upload, [shown, results.status], queue=False, api_visibility="private")


def connect(
    desk: Desk,
    stops: Stops,
    results: Results,
    inputs: Sequence[gr.Component],
    read: Callable[..., Ask],
) -> None:
    """Let the buttons of a tab answer, stop, and sift masks by their score.

    Args:
        desk: answers, one request at a time.
        stops: who waits.
        results: of the tab.
        inputs: whose values ``read`` takes.
        read: makes a request of them; raises ``UnigsError`` if something is missing.
    """

    def run(request: gr.Request, least: float, *values: Any) -> list[Any]:
        try:
            with stops.wait(str(request.session_hash), results.key) as stop:
                answer = desk.answer(results.verb, read(*values), stop)
        except Exception as error:
            return [
                None,
                None,
                None,
                gr.DownloadButton(value=None, interactive=False),
                explain(error),
            ]
        width, height = answer.size
        told = f"masks: {len(answer.segments)}, of {width} x {height} px"
        download = gr.DownloadButton(value=str(answer.archive), interactive=True)
        return [answer, answer.picture, show_masks(answer, least), download, told]

    outputs = [results.answer, results.drawn, results.masks, results.download, results.status]
    event = results.run.click(
        run, [results.score, *inputs], outputs, concurrency_id="model", concurrency_limit=1,
        api_visibility="private",
    )  # fmt: skip
    results.stop.click(None, cancels=[event])  # one that waits leaves the queue

    def stop(request: gr.Request) -> str:
        stops.stop(str(request.session_hash), results.key)
        return explain(Stopped())

    results.stop.click(stop, None, results.status, queue=False, api_visibility="private")
    results.score.change(
        show_masks, [results.answer, results.score], results.masks, queue=False,
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip


# --- values --------------------------------------------------------------------------------------


def lay_under(picture: Image.Image) -> EditorValue:
    """A picture as the ground of an editor on which nothing is painted."""
    return {"background": picture, "layers": [], "composite": None}


def show_masks(answer: Answer | None, least: float) -> gr.AnnotatedImage:
    """The masks of a score of ``least`` or more over the picture, and the legend."""
    if answer is None:
        return gr.AnnotatedImage(value=None)
    legend = list_legend(answer.segments, least)
    masks = [((answer.labels == label) * STRENGTH, line) for label, (line, _) in legend.items()]
    return gr.AnnotatedImage(value=(answer.picture, masks), color_map=dict(legend.values()))


def explain(error: Exception) -> str:
    """Words for the line of a tab; what is not the user's fault goes to the terminal too."""
    if isinstance(error, Stopped):
        return "Stopped."
    if lacks_memory(error):
        return "expected enough memory, got no more of it; try a smaller picture"
    if isinstance(error, UnigsError):
        return str(error)
    traceback.print_exception(error)
    return f"the program failed ({type(error).__name__}); its terminal says more"


def stop_session(stops: Stops) -> Callable[[gr.Request], None]:
    """What is done when somebody closes the page."""

    def stop(request: gr.Request) -> None:
        stops.stop(str(request.session_hash))

    return stop
