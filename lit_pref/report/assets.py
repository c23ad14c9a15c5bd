"""Style and script of the report page, kept as text so that the page has no second file."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#566374;--line:#dfe4ea;
--grid:#e9edf1;--c0:#0067a6;--c1:#c8500a;--c2:#007f5f;--c3:#8a3f7c;--c4:#7a6000;--c5:#3b3f46;--good:#00704f;--bad:#ad2b12;
--note:#fff6e0;--note-line:#e3c06a;--code:#f2f4f7;--key:#0067a6;--tip:#16202c;--tip-ink:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#10151b;--card:#19212a;--ink:#e8edf2;--soft:#a1aebc;
--line:#2d3843;--grid:#26303a;--c0:#5ab8f0;--c1:#f39b53;--c2:#45cda4;--c3:#dc9fd0;--c4:#e0c54a;
--c5:#c3c9d1;--good:#52d0a3;
--bad:#ff8f73;--note:#2d2614;--note-line:#7c6426;--code:#131a21;--key:#7cc7f5;--tip:#e8edf2;
--tip-ink:#10151b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
.page{max-width:1260px;margin:0 auto;padding:28px 24px 48px}
h1,h2,h3,p,ul,dl,dd,figure,pre{margin:0}
h1{font-size:28px;line-height:1.2;letter-spacing:-.015em}
h1 small{font:inherit;font-weight:400;color:var(--soft)}
h2{font-size:18px;letter-spacing:-.005em}
.kicker{font-size:12px;letter-spacing:.09em;text-transform:uppercase;color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:6px 20px;margin-top:8px;color:var(--soft)}
.facts b{color:var(--ink);font-weight:600}
.status{display:inline-block;padding:0 10px;border:1px solid;border-radius:99px;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.note{margin-top:18px;padding:10px 16px;background:var(--note);border:1px solid var(--note-line);
border-radius:10px}
.note ul{padding-left:20px}
.tiles{display:grid;grid-template-columns:1.9fr repeat(4,1fr);gap:1px;margin-top:20px;
overflow:hidden;background:var(--line)}
.tiles>div{background:var(--card);padding:12px 16px 13px}
.tiles .wide{grid-row:span 2;display:flex;flex-direction:column;justify-content:center}
.tiles .wide>dd{margin-top:2px}
.tiles dt{font-size:13px;color:var(--soft)}
.tiles dd{font-size:21px;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}
.tiles .wide dd{font-size:34px;line-height:1.2;letter-spacing:-.015em}
.tiles small{display:block;font-size:12.5px;font-weight:400;line-height:1.35;color:var(--soft)}
.tiles .delta{display:block;font-size:17px;letter-spacing:0}
.tiles i{font-style:normal;font-weight:400;color:var(--soft)}
.head{display:flex;flex-wrap:wrap;gap:8px 20px;align-items:center;justify-content:space-between;
margin:32px 0 12px}
.head p{color:var(--soft);flex-basis:100%}.switch+p{font-size:13px;margin-top:-6px}
.pick{position:absolute;opacity:0;pointer-events:none}
.switch{display:flex;align-items:center;gap:10px;color:var(--soft);font-size:13px}
.switch span{display:flex;border:1px solid var(--line);border-radius:8px;background:var(--card);
overflow:hidden}
.switch label{padding:5px 12px;cursor:pointer}
.switch label+label{border-left:1px solid var(--line)}
.switch label:hover{color:var(--ink)}
.grid3{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:14px}
.chart{padding:12px 14px 10px;min-width:0;display:flex;flex-direction:column}
.chart h3{font-size:14.5px}
.chart ul{display:flex;flex-wrap:wrap;gap:2px 16px;padding:2px 0 0;list-style:none;
font-size:12.5px;color:var(--soft)}
.chart .only{display:none}
.chart .key{width:30px;height:10px;margin-right:6px}
.plot{display:none;width:100%;height:auto;margin-top:auto;padding-top:4px;touch-action:pan-y}
.fixed{display:block}
.plot:focus-visible{outline:2px solid var(--c0);outline-offset:2px;border-radius:4px}
.plot text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.plot .title,.plot .none{text-anchor:middle}
.plot .x{text-anchor:middle}.plot .y{text-anchor:end}
.grid{stroke:var(--grid);fill:none}.zero,.axis{stroke:var(--soft);stroke-opacity:.55;fill:none}
.guide{stroke:var(--soft);stroke-dasharray:2 3}
.s0,.s1,.s2,.s3,.s4,.s5{fill:none;stroke-width:2.1;stroke-linejoin:round;stroke-linecap:round}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1);stroke-dasharray:7 4.5}
.s2{stroke:var(--c2);stroke-dasharray:.1 4.4;stroke-width:2.6}
.s3{stroke:var(--c3);stroke-dasharray:9 4 .1 4}
.s4{stroke:var(--c4);stroke-dasharray:3 3}.s5{stroke:var(--c5);stroke-dasharray:14 3}
.one{stroke-width:1;stroke-dasharray:none;stroke-opacity:.45}
.behind{fill:none;stroke:var(--soft);stroke-opacity:.28;stroke-width:1}
.band{fill-opacity:.16;stroke:none}
.m4,.dot4{fill:var(--c4)}.m5,.dot5{fill:var(--c5)}
.raw{stroke-width:1;stroke-dasharray:none;stroke-opacity:.34}
.m0,.dot0{fill:var(--c0)}.m1,.dot1{fill:var(--c1)}.m2,.dot2{fill:var(--c2)}.m3,.dot3{fill:var(--c3)}
.dot{stroke:var(--card);stroke-width:1.6}
#tip{position:fixed;z-index:9;left:0;top:0;max-width:min(300px,92vw);padding:7px 11px;
pointer-events:none;background:var(--tip);color:var(--tip-ink);border-radius:7px;font-size:12.5px;
line-height:1.45;font-variant-numeric:tabular-nums;box-shadow:0 4px 16px #0003}
#tip[hidden]{display:none}
#tip b{display:block;font-weight:600}#tip div{display:flex;gap:14px;justify-content:space-between}
details{margin-top:14px}
summary{cursor:pointer;padding:11px 16px;font-weight:600}
summary span{font-weight:400;color:var(--soft);margin-left:6px}
details>.grid3,details>.scroll,details>pre{padding:2px 16px 16px}
details .chart{border:1px solid var(--line);border-radius:8px}
pre{overflow-x:auto;font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",
monospace;overflow-wrap:normal}
pre b{font-weight:400;color:var(--key)}
table{border-collapse:collapse;font-size:13.5px}
td{padding:3px 24px 3px 0;vertical-align:top}td:first-child{color:var(--soft);white-space:nowrap}
.pair{margin-bottom:12px;overflow:hidden}
.pair header{display:flex;gap:6px 20px;justify-content:space-between;padding:11px 16px;
border-bottom:1px solid var(--line);flex-wrap:wrap}
.prompt{flex:1 1 320px;min-width:0;max-height:9.2em;overflow:auto;white-space:pre-wrap;
font-weight:600}
.pair .change{font-variant-numeric:tabular-nums;white-space:nowrap;color:var(--soft)}
.sides{display:grid;grid-template-columns:1fr 1fr}
.side{padding:10px 16px 13px;min-width:0}
.side+.side{border-left:1px solid var(--line)}
.side h3{display:flex;flex-wrap:wrap;gap:2px 12px;font-size:12.5px;font-weight:400;
color:var(--soft);margin-bottom:3px}
.side h3 b{color:var(--ink);font-weight:600}
.text{white-space:pre-wrap;max-height:15.2em;overflow:auto}
.ids{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:14px;word-spacing:.25em}
.role{display:inline-block;margin-right:8px;font-size:11.5px;font-weight:600;color:var(--soft);
text-transform:uppercase;letter-spacing:.06em}
.cut,.empty{color:var(--soft);font-style:italic}
footer{margin-top:32px;color:var(--soft);font-size:13px}
@media (max-width:900px){.tiles{grid-template-columns:repeat(4,1fr)}
.tiles .wide{grid-area:auto/span 4}}
@media (max-width:640px){.page{padding:18px 12px 32px}h1{font-size:23px}
.tiles{grid-template-columns:1fr 1fr}.tiles .wide{grid-area:auto/span 2}
.tiles>div{padding:9px 12px 10px}.tiles dd{font-size:18px}
.tiles .wide dd{font-size:28px}.sides{grid-template-columns:1fr}
.side+.side{border-left:0;border-top:1px solid var(--line)}
.switch{flex-wrap:wrap;gap:2px 10px}.switch label{padding:5px 10px}.plot text{font-size:13px}}
@media print{body{background:#fff}.switch{display:none}.card{break-inside:avoid}
.text,.prompt{max-height:none}}
"""

SCRIPT = """
(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var at = {}, tip = document.getElementById("tip");
  data.columns.forEach(function (name, i) { at[name] = i; });

  function text(value) {
    if (Number.isInteger(value)) return value.toLocaleString("en");
    var size = Math.abs(value);
    if (size && (size < 1e-4 || size >= 1e7)) return value.toExponential(3);
    return String(Number(value.toPrecision(5)));
  }
  function numbers(name, value) {
    var x = at[name], y = at[value];
    return data.rows.filter(function (row) {
      return typeof row[x] === "number" && typeof row[y] === "number";
    });
  }
  function nearest(rows, column, x) {
    var best = null, gap = Infinity;
    rows.forEach(function (row) {
      var d = Math.abs(row[column] - x);
      if (d < gap) { gap = d; best = row; }
    });
    return best;
  }
  function add(parent, tag, words) {
    var node = parent.appendChild(document.createElement(tag));
    node.textContent = words;
    return node;
  }

  document.querySelectorAll("svg.plot[data-x]").forEach(function (svg) {
    var xs = svg.dataset.x.split(" ").map(Number), ys = svg.dataset.y.split(" ").map(Number);
    var box = svg.dataset.box.split(" ").map(Number), axis = svg.dataset.axis, lines = null;
    var guide = svg.querySelector(".guide"), shown = null;

    function load() {
      lines = lines || Array.from(svg.parentNode.querySelectorAll("li")).map(function (li) {
        var dot = document.createElementNS(svg.namespaceURI, "circle");
        dot.setAttribute("class", "dot dot" + li.dataset.slot);
        dot.setAttribute("r", 4.5);
        return { column: at[li.dataset.column], label: li.textContent, dot: svg.appendChild(dot),
                 rows: numbers(axis, li.dataset.column) };
      }).filter(function (line) { return line.rows.length; });
    }
    function px(x) { return box[0] + (x - xs[0]) / (xs[1] - xs[0]) * (box[1] - box[0]); }
    function py(y) { return box[3] - (y - ys[0]) / (ys[1] - ys[0]) * (box[3] - box[2]); }
    function hide() {
      tip.hidden = true;
      guide.setAttribute("x1", -9);
      guide.setAttribute("x2", -9);
      (lines || []).forEach(function (line) { line.dot.setAttribute("cx", -99); });
    }
    function show(x, left, top) {
      load();
      var hits = lines.map(function (line) { return nearest(line.rows, at[axis], x); });
      var row = nearest(hits, at[axis], x);
      shown = row;
      tip.textContent = "";
      add(tip, "b", data.axes.filter(function (a) { return at[a[0]] !== undefined; })
        .map(function (a) { return a[1].toLowerCase() + " " + text(row[at[a[0]]]); }).join(", "));
      lines.forEach(function (line, i) {
        var hit = hits[i], value = add(tip, "div", ""), away = hit[at[axis]] !== row[at[axis]];
        add(value, "span", line.label + (away ? " (at " + text(hit[at[axis]]) + ")" : ""));
        add(value, "span", text(hit[line.column]));
        line.dot.setAttribute("cx", px(hit[at[axis]]));
        line.dot.setAttribute("cy", py(hit[line.column]));
      });
      guide.setAttribute("x1", px(row[at[axis]]));
      guide.setAttribute("x2", px(row[at[axis]]));
      tip.hidden = false;
      var w = tip.offsetWidth, h = tip.offsetHeight;
      tip.style.left = Math.max(4, left + 16 + w > innerWidth ? left - w - 16 : left + 16) + "px";
      tip.style.top = Math.max(4, Math.min(top + 16, innerHeight - h - 4)) + "px";
    }
    svg.addEventListener("pointermove", function (event) {
      var r = svg.getBoundingClientRect(), v = svg.viewBox.baseVal.width;
      var f = ((event.clientX - r.left) / r.width * v - box[0]) / (box[1] - box[0]);
      show(xs[0] + Math.min(1, Math.max(0, f)) * (xs[1] - xs[0]), event.clientX, event.clientY);
    });
    svg.addEventListener("keydown", function (event) {
      var step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      load();
      var all = lines[0].rows, now = shown && nearest(all, at[axis], shown[at[axis]]);
      var i = now ? all.indexOf(now) : -1;
      var row = all[Math.min(all.length - 1, Math.max(0, i + step))];
      var r = svg.getBoundingClientRect();
      show(row[at[axis]], r.left + px(row[at[axis]]) / svg.viewBox.baseVal.width * r.width, r.top);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
  });
})();
"""
