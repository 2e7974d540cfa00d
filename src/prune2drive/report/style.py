"""The frame of every page, and its style sheet: light and dark, three columns on a desk, two on a phone."""

from __future__ import annotations

import base64
import hashlib

CSS = """
:root {
  color-scheme: light dark;
  --bg: #f4f5f7; --card: #ffffff; --line: #dfe3e8; --ink: #12161c; --soft: #56606d;
  --accent: #0f766e; --track: #e6eaee; --warn-bg: #fff7e6; --warn-line: #e5b454; --warn-ink: #6b4a06;
  --body: #c3cad3; --glass: #7d8896; --gap: 14px;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #0d1014; --card: #161a20; --line: #2a3038; --ink: #e8ebef; --soft: #9aa4b1;
    --accent: #5eead4; --track: #262c34; --warn-bg: #2a2110; --warn-line: #8a6a22; --warn-ink: #f3d694;
    --body: #414a56; --glass: #78838f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--bg); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 48px; }
h1, h2, h3, p, dl, dd, figure, blockquote { margin: 0; }
.over { font-size: 12.5px; letter-spacing: .06em; color: var(--soft); }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; font-weight: 680; margin-top: 4px;
  text-wrap: balance; }
h2 { font-size: 18px; letter-spacing: -.005em; font-weight: 650; margin: 40px 0 14px; }
.note {
  margin-top: 18px; padding: 10px 14px; border: 1px solid var(--warn-line); border-radius: 10px;
  background: var(--warn-bg); color: var(--warn-ink); font-size: 15px;
}
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.words { overflow-wrap: anywhere; white-space: pre-line; }
.ask { margin-top: 24px; padding: 18px 20px; }
.ask .label, .label { font-size: 13px; color: var(--soft); }
.ask .question { font-size: 20px; line-height: 1.4; font-weight: 560; }
.answers { display: grid; grid-template-columns: 1fr; gap: 16px 28px; margin-top: 16px; padding-top: 16px;
  border-top: 1px solid var(--line); }
.answers.two { grid-template-columns: 1fr 1fr; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: var(--gap);
  margin-top: var(--gap); }
.figures > div { padding: 14px 20px 16px; }
.big { font-size: 28px; line-height: 1.2; font-weight: 660; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.big small { font-size: 16px; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.row { display: flex; flex-wrap: wrap; justify-content: center; gap: var(--gap); }
.flow { justify-content: flex-start; }
.panel { overflow: hidden; min-width: 0; flex: 0 0 auto; }
.cols1 .panel { width: min(100%, 820px); }
.cols2 .panel { width: calc((100% - var(--gap)) / 2); }
.cols3 .panel { width: calc((100% - 2 * var(--gap)) / 3); }
.cols4 .panel { width: calc((100% - 3 * var(--gap)) / 4); }
.panel img { display: block; width: 100%; height: auto; background: #000; }
.panel figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px;
  padding: 9px 13px 11px; font-size: 14px; }
.panel b { font-weight: 620; min-width: 0; overflow-wrap: anywhere; }
.panel span { color: var(--soft); font-variant-numeric: tabular-nums; }
.panel .aside { flex: 1 0 100%; }
.ego { display: grid; grid-template-columns: 1fr auto 1fr; align-items: center; gap: 8px 28px;
  padding: 8px 0; }
.ego p { font-size: 14px; color: var(--soft); max-width: 34ch; }
.ego p:first-child { justify-self: end; text-align: right; }
.ego svg { display: block; width: 210px; height: 170px; }
.fan { fill: var(--accent); fill-opacity: .28; stroke: var(--accent); stroke-opacity: .7; }
.body { fill: var(--body); } .glass { fill: var(--glass); } .lamp { fill: var(--accent); }
.tables { display: grid; grid-template-columns: 3fr 2fr; gap: 0 28px; align-items: start; }
.tables > section { min-width: 0; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 16px; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th, thead td { border-top: 0; }
thead th { font-size: 13px; font-weight: 500; color: var(--soft); }
tbody th { font-weight: 500; }
tfoot th, tfoot td { font-weight: 660; }
td.bar { width: 30%; min-width: 70px; padding-left: 0; }
td.bar svg { display: block; width: 100%; height: 8px; }
.track { fill: var(--track); } .fill { fill: var(--accent); }
.hint { font-size: 13.5px; color: var(--soft); margin-top: 10px; max-width: 70ch; }
footer { margin-top: 40px; padding-top: 20px; border-top: 1px solid var(--line); }
footer dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 14px 28px; }
footer dt { font-size: 13px; color: var(--soft); }
footer dd { font-size: 14.5px; overflow-wrap: anywhere; }
@media (max-width: 900px) { .tables { grid-template-columns: 1fr; } }
@media (max-width: 640px) {
  :root { --gap: 10px; }
  main { padding: 22px 14px 36px; }
  h1 { font-size: 24px; }
  .ask { padding: 15px 15px; } .ask .question { font-size: 18px; }
  .answers.two { grid-template-columns: 1fr; }
  .figures { grid-template-columns: 1fr 1fr; } .figures > div { padding: 11px 14px 12px; }
  .figures.odd > div:first-child { grid-column: 1 / -1; }
  .big { font-size: 23px; }
  .row { display: grid; grid-template-columns: 1fr 1fr; }
  .cols1 .panel, .cols2 .panel, .cols3 .panel, .cols4 .panel { width: auto; }
  .panel.lead { grid-column: 1 / -1; order: -1; }
  .panel figcaption { font-size: 12.5px; padding: 7px 10px 9px; }
  .ego { grid-template-columns: 1fr 1fr; }
  .ego svg { grid-column: 1 / -1; grid-row: 1; justify-self: center; width: 180px; height: 146px; }
  .ego p, .ego p:first-child { text-align: left; justify-self: start; font-size: 13px; }
  th, td { padding: 8px 10px; } table { font-size: 14px; }
  td.bar, thead td { display: none; }
  th:first-child { white-space: normal; overflow-wrap: break-word; }
  .ego { padding: 4px 0 12px; }
}
@media print { body { background: #fff; } .panel, table { break-inside: avoid; } }
"""


def document(title: str, css: str, body: str, pictures: bool = False) -> str:
    """A whole page that fetches nothing and runs no script, and whose policy says so.

    Args:
        title: of the page, as HTML; so is ``body``, which stands below it.
        css: the styles that the body needs beside those of all pages.
        pictures: whether the body holds pictures, as ``data:``.
    """
    css = CSS + css
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    images = "img-src data:; " if pictures else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; {images}'
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="over">prune2drive</p><h1 class="words">{title}</h1></header>\n'
        f"{body}</main>\n</body>\n</html>\n"
    )
