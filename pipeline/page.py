"""The look that every page of the project shares and the frame around its parts: no scripts, nothing fetched.

Colours follow the reader's light or dark setting. A page brings rules of its own behind these.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

_LOOK = """
:root{color-scheme:light dark;--ground:#f6f6f3;--paper:#fff;--ink:#1d1f21;--soft:#6b6f76;--line:#e3e2dc;
--good:#2f7d6b;--bad:#b4503e}
@media(prefers-color-scheme:dark){:root{--ground:#16181a;--paper:#1f2225;--ink:#e8e6e1;--soft:#9aa0a8;--line:#33373c;
--good:#57b59d;--bad:#e08a77}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:30px;margin:0;letter-spacing:-.02em}
h2{font-size:19px;margin:52px 0 4px;letter-spacing:-.01em}
h3{font-size:15px;margin:30px 0 10px;font-weight:600}
h3 small,.soft{color:var(--soft);font-weight:400}
p{margin:4px 0 18px;max-width:80ch;color:var(--soft)}
code,.mono{font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.figures{display:flex;flex-wrap:wrap;gap:14px;margin:26px 0 0}
.figure{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:14px 20px;min-width:148px}
.figure b{display:block;font-size:26px;line-height:1.2;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.figure span{color:var(--soft);font-size:13px}
.good b{color:var(--good)}.bad b{color:var(--bad)}
.panel{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:14px 20px;overflow-x:auto}
.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;overflow:hidden;margin:0}
.card figcaption{padding:8px 11px 10px;font-size:13px;line-height:1.35;border-top:1px solid var(--line)}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{border-top:0!important;color:var(--soft);font-weight:400}
svg{display:block}
pre{margin:0;overflow:auto}
"""


def page(title: str, style: str, parts: Iterable[str]) -> str:
    """A whole page of the given parts; `style` holds the rules that it needs beside the look they share."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_LOOK}{style}</style></head><body><main>\n{''.join(parts)}"
        "</main></body></html>\n"
    )


def text(value: object) -> str:
    """Any value as text that cannot be taken for mark-up, in element or attribute."""
    return html.escape(str(value), quote=True)


def figures(values: Sequence[tuple[str, str]], kinds: Sequence[str] = ()) -> str:
    """A row of large numbers: (value, what it is). `kinds`: `good`, `bad` or nothing for each, where that is said."""
    boxes = "".join(
        f'<div class="figure {kind}"><b>{text(value)}</b><span>{text(what)}</span></div>'
        for (value, what), kind in zip(values, kinds or [""] * len(values), strict=True)
    )
    return f'<div class="figures">{boxes}</div>\n'


def data_uri(image: bytes) -> str:
    """An encoded picture as an address that holds it."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}
    kind = next((kind for start, kind in kinds.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
