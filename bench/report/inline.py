"""matplotlib's SVG files made fit for one page: unique ids, themed colours, shared style classes, fewer bytes."""

from __future__ import annotations

import re

from . import styles, toml
from .figures import canvas, fate

_PROLOG = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_STYLE_RULE = re.compile(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>")
_GROUND = re.compile(
    r'<g id="(?:figure_1|axes_\d+|patch_\d+)">\s*(<g id="patch_\d+">\s*)?<path [^>]*style="fill: #ffffff"/>'
)
_ID = re.compile(r'\bid="([^"]+)"')
_URL = re.compile(r"url\(#([^)]+)\)")
_HREF = re.compile(r'xlink:href="#([^"]+)"')
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_SIZE = re.compile(r'width="([\d.]+)pt" height="([\d.]+)pt" ')
_PATH = re.compile(r' d="([^"]*)"')
_STYLE = re.compile(r' style="([^"]*)"')
_LONELY = re.compile(r"<g>(<[^<>]+/>|<text[^<>]*>[^<>]*</text>)</g>")
_POINT = re.compile(r"([MLC]) ([-\d. \n]+)")


def variables() -> dict[str, tuple[str, str, str]]:
    """hex of the light theme -> (name of the variable, light, dark)."""
    found = {"#000000": ("currentColor", "", ""), "#ffffff": ("var(--ground)", "", "")}
    found[canvas.GREY.lower()] = ("var(--muted)", "", "")
    found["#404040"] = ("var(--muted)", "", "")
    found["#b0b0b0"] = ("var(--muted)", "", "")
    found[canvas.LIGHT.lower()] = ("var(--grid)", "", "")
    found[canvas.SOFT.lower()] = ("var(--soft)", "", "")
    for at, slot in enumerate(toml.read(styles.FILE)["slot"]):
        if slot["light"] != "#000000":
            found[slot["light"].lower()] = (f"var(--m{at})", slot["light"], slot["dark"])
    for (key, _, light, _), dark in zip(fate.FATES, ("#7FC4F0", "#2C5A78", "#8A5A12", "#3B4148"), strict=True):
        found[light.lower()] = (f"var(--{key})", light, dark)
    return found


class _Names(dict[str, str]):
    """Ids of one figure: short, unique on the page; those of series (m-<method>, r-<method>) keep their name."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def __missing__(self, name: str) -> str:
        self[name] = f"{self._prefix}-{name}" if name[:2] in ("m-", "r-") else f"{self._prefix}-{len(self)}"
        return self[name]


class Inliner:
    """Turns SVG files into fragments of one page; style attributes that repeat become classes of one style sheet."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._names = {light: name for light, (name, _, _) in variables().items()}

    def fragment(self, svg: str, prefix: str) -> str:
        """One figure; every id begins with `prefix`."""
        text = _PROLOG.sub("", svg, count=1)
        text = _METADATA.sub("", text)
        text = _STYLE_RULE.sub("", text)
        text = _GROUND.sub(lambda m: re.sub(r"<path [^>]*/>", "", m.group()), text)
        names = _Names(prefix)
        text = _ID.sub(lambda m: f'id="{names[m[1]]}"', text)
        text = _URL.sub(lambda m: f"url(#{names[m[1]]})", text)
        text = _HREF.sub(lambda m: f'href="#{names[m[1]]}"', text)
        width = float(_SIZE.search(text)[1])  # type: ignore[index]
        kind = "wide" if width > 300 else "narrow"
        text = _SIZE.sub("", text, count=1).replace("<svg ", f'<svg class="{kind}" ', 1)
        text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
        text = text.replace(' xmlns="http://www.w3.org/2000/svg"', "").replace(' version="1.1"', "")
        text = _PATH.sub(lambda m: f' d="{_shorter(m[1])}"', text)
        text = re.sub(r'([xy])="(-?\d+\.\d)\d+"', r'\1="\2"', text)
        text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
        text = _STYLE.sub(self._class, text)
        text = re.sub(r">\s+<", "><", text)
        used = set(_URL.findall(text)) | set(re.findall(r'href="#([^"]+)"', text))
        text = _ID.sub(lambda m: f'id="{m[1]}"' if m[1] in used or "-m-" in m[1] or "-r-" in m[1] else "", text)
        text = text.replace("<g >", "<g>")
        for _ in range(4):  # groups that say nothing
            text = _LONELY.sub(r"\1", text.replace("<g></g>", ""))
        return text

    def _class(self, match: re.Match[str]) -> str:
        style = _HEX.sub(lambda m: self._names.get(m.group(), m.group()), match[1])
        if "url(#" in style:  # belongs to one figure only
            return f' style="{style}"'
        name = self._classes.setdefault(style, f"s{len(self._classes)}")
        return f' class="{name}"'

    def css(self) -> str:
        """The rules of every class that was handed out."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._classes.items())


def _shorter(path: str) -> str:
    """The same path with one digit after the point; steps as H and V."""
    out: list[str] = []
    last: tuple[str, str] | None = None
    for part in path.replace("\n", " ").replace("z", " z ").split(" z"):
        for verb, numbers in _POINT.findall(part):
            short = [_one_digit(n) for n in numbers.split()]
            if verb == "L" and last and short[0] == last[0]:
                out.append(f"V{short[1]}")
            elif verb == "L" and last and short[1] == last[1]:
                out.append(f"H{short[0]}")
            else:
                out.append(verb + " ".join(short))
            last = (short[-2], short[-1])
        if part.strip() and path.rstrip().endswith("z"):
            out.append("z")
    return "".join(out)


def _one_digit(text: str) -> str:
    whole, _, rest = text.partition(".")
    short = f"{whole}.{rest[:1]}" if rest and rest[0] != "0" else whole
    return "0" if short in ("-0", "") else short
