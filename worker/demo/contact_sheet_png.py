"""The contact sheet as one PNG, drawn with Pillow."""

import io
import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from detector.bundle.calibration import Thresholds
from detector.policy import VerdictName
from worker.demo.contact_sheet import NOTE, TRUTHS, WORDS, ContactSheet, JudgedPicture

COLUMNS = 3
CARD_WIDTH, CARD_HEIGHT, PICTURE_HEIGHT = 500, 352, 216
FEATURE_WIDTH, GAP, MARGIN = 216, 24, 48
HEADER_HEIGHT, ROW_HEIGHT = 204, 38

PAGE, CARD, LINE, TEXT, QUIET = "#f4f5f7", "#ffffff", "#dfe3e8", "#16191d", "#5c6570"
COLOURS: dict[VerdictName, str] = {"real": "#0f7b4f", "review": "#a15c00", "generated": "#c02637"}
TINTS: dict[VerdictName, str] = {"real": "#e3f4ec", "review": "#fbf0df", "generated": "#fce8ea"}


def render_png(sheet: ContactSheet) -> bytes:
    """Return the sheet as a PNG, `COLUMNS` pictures a row."""
    rows = -(-len(sheet.judged) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * CARD_WIDTH + (COLUMNS - 1) * GAP
    cards_end = HEADER_HEIGHT + rows * (CARD_HEIGHT + GAP)
    table_height = 56 + ROW_HEIGHT * len(sheet.rejected) + 12 if sheet.rejected else 0
    image = Image.new("RGB", (width, cards_end + table_height + MARGIN - GAP), PAGE)
    draw = ImageDraw.Draw(image)
    _header(draw, sheet)
    for position, item in enumerate(sheet.judged):
        row, column = divmod(position, COLUMNS)
        left = MARGIN + column * (CARD_WIDTH + GAP)
        top = HEADER_HEIGHT + row * (CARD_HEIGHT + GAP)
        _card(image, (left, top), item, sheet.thresholds)
    if sheet.rejected:
        _rejections(draw, sheet, cards_end + 8, width)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def _header(draw: ImageDraw.ImageDraw, sheet: ContactSheet) -> None:
    draw.text((MARGIN, 36), "Verdicts", TEXT, _font(38))
    draw.text((MARGIN, 90), sheet.summary(), TEXT, _font(20))
    draw.text((MARGIN, 120), f"{sheet.reading_guide()} Model: {sheet.model}.", QUIET, _font(16))
    draw.rectangle((MARGIN, 153, MARGIN + 3, 179), fill=COLOURS["review"])
    draw.text((MARGIN + 14, 156), NOTE, TEXT, _font(17))


def _card(image: Image.Image, corner: tuple[int, int], item: JudgedPicture, thresholds: Thresholds) -> None:
    left, top = corner
    right, bottom = left + CARD_WIDTH, top + CARD_HEIGHT
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((left, top, right, bottom), 12, CARD, LINE)
    picture_width = CARD_WIDTH - FEATURE_WIDTH - 10
    image.paste(_fitted(item.picture, (picture_width, PICTURE_HEIGHT - 8)), (left + 8, top + 8))
    if item.thumbnail:
        feature = _fitted(item.thumbnail, (FEATURE_WIDTH - 8, PICTURE_HEIGHT - 8))
        image.paste(feature, (left + 10 + picture_width, top + 8))

    line = top + PICTURE_HEIGHT + 14
    word, colour = WORDS[item.verdict], COLOURS[item.verdict]
    pill = int(_font(17).getlength(word)) + 28
    draw.rounded_rectangle((right - 16 - pill, line, right - 16, line + 30), 15, TINTS[item.verdict], colour)
    draw.text((right - 16 - pill // 2, line + 15), word, colour, _font(17), anchor="mm")
    draw.text((left + 16, line + 3), _cut(item.title, 20, CARD_WIDTH - pill - 48), TEXT, _font(20))

    line += 44
    start, length = left + 16, CARD_WIDTH - 32
    draw.rounded_rectangle((start, line, start + length, line + 7), 3, LINE)
    draw.rounded_rectangle((start, line, start + max(6, int(length * item.score)), line + 7), 3, colour)
    for cut in (thresholds.review_from, thresholds.generated_from):
        draw.rectangle((start + length * cut - 1, line - 3, start + length * cut, line + 10), fill=QUIET)

    line += 18
    if item.truth:
        mark = {"right": "Right", "wrong": "Wrong", "open": "Open"}[item.agreement]
        draw.text((start, line), f"{mark}: truly {TRUTHS[item.truth]}", TEXT, _font(17))
    draw.text((right - 16, line), f"score {item.score:.3f}", TEXT, _font(17), anchor="ra")
    details = [part for part in (item.origin, f"{item.milliseconds:.0f} ms", item.credit) if part]
    draw.text((start, line + 26), _cut(" · ".join(details), 14, length), QUIET, _font(14))


def _rejections(draw: ImageDraw.ImageDraw, sheet: ContactSheet, top: int, width: int) -> None:
    draw.text((MARGIN, top), "Rejected uploads", TEXT, _font(26))
    top += 44
    bottom = top + ROW_HEIGHT * len(sheet.rejected)
    draw.rounded_rectangle((MARGIN, top, width - MARGIN, bottom), 10, CARD, LINE)
    for number, item in enumerate(sheet.rejected):
        line = top + number * ROW_HEIGHT
        if number:
            draw.line((MARGIN, line, width - MARGIN, line), LINE)
        draw.text((MARGIN + 18, line + 9), _cut(item.title, 17, 360), TEXT, _font(17))
        draw.text((MARGIN + 400, line + 9), _cut(item.reason, 17, 220), COLOURS["review"], _font(17))
        draw.text((MARGIN + 640, line + 9), _cut(item.detail, 17, width - 2 * MARGIN - 660), QUIET, _font(17))


def _fitted(encoded: bytes, size: tuple[int, int]) -> Image.Image:
    """Decode, fill `size` and cut off what is over, so that all cards are alike."""
    return ImageOps.fit(Image.open(io.BytesIO(encoded)).convert("RGB"), size, Image.Resampling.LANCZOS)


def _cut(text: str, size: int, width: float) -> str:
    """Shorten a text to `width` pixels; Pillow's own font has no accented letters, so accents go."""
    text = "".join(
        dead_letter
        for dead_letter in unicodedata.normalize("NFKD", text)
        if not unicodedata.combining(dead_letter)
    )
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
