
"use strict";
(async () => {
const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const bytesOf = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const inflated = async text => {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
};
const shares = new Uint16Array(await inflated(data.shares));
const weights = [];
for (const text of data.weights) weights.push(new Uint8Array(await inflated(text)));

const [layers, heads] = data.shape, [keptLayers, keptHeads] = data.kept;
const boxes = [...document.querySelectorAll(".tokens")];
const spans = boxes.map(box => [...box.children]);
const titles = boxes.map(box => box.previousElementSibling.textContent);
const documents = titles.length, rows = data.rows, rowOf = new Map(rows.map((token, row) => [token, row]));
const square = Float32Array.from({length: 256}, (_, q) => (q / 255) ** 2);
const every = rows.map((_, row) => row);
const percent = share => (100 * share).toFixed(share < .0995 ? 1 : 0) + " %";

let kept = null;      // the row that was clicked
let pointed = null;   // the row under the pointer or the focus
let looked = null;    // the document whose shares the grid shows; null: all that are linked
const chosen = (id, count) => {
  const select = byId(id);
  return select && select.value !== "" ? [Number(select.value)] : [...Array(count).keys()];
};

// Means over the chosen layers and heads.
function shareOf(row, doc, layerSet, headSet) {
  let sum = 0;
  for (const l of layerSet) for (const h of headSet) sum += shares[((row * layers + l) * heads + h) * documents + doc];
  return sum / 65535 / layerSet.length / headSet.length;
}
function weightsOf(row, doc, into) {
  const count = spans[doc].length, layerSet = chosen("layer", keptLayers), headSet = chosen("head", keptHeads);
  const part = 1 / layerSet.length / headSet.length;
  for (const l of layerSet) for (const h of headSet) {
    const at = ((row * keptLayers + l) * keptHeads + h) * count;
    for (let key = 0; key < count; key++) into[key] += part * square[weights[doc][at + key]];
  }
}
const sees = (row, doc) => data.inView[row][doc] === "1";

// For each document what its tokens drew: from one row, or on average from those that see them.
function drawn(row) {
  return spans.map((tokens, doc) => {
    const sum = new Float32Array(tokens.length);
    if (row !== null) { if (sees(row, doc)) weightsOf(row, doc, sum); return sum; }
    const seen = every.filter(one => sees(one, doc));
    for (const one of seen) weightsOf(one, doc, sum);
    for (let key = 0; key < sum.length; key++) {
      const viewers = doc ? seen.length : rows.filter(token => token >= key).length;
      if (viewers) sum[key] /= viewers;
    }
    return sum;
  });
}
// Of the document's own tokens, what each gave to others.
function given() {
  const layerSet = chosenLayers(), headSet = chosenHeads();
  return spans.map((tokens, doc) => {
    const sum = new Float32Array(tokens.length);
    if (doc === 0) rows.forEach((token, row) => { sum[token] = 1 - shareOf(row, 0, layerSet, headSet); });
    return sum;
  });
}
const chosenLayers = () => chosen("layer", layers), chosenHeads = () => chosen("head", heads);

let values = [];
function show() {
  const row = pointed ?? kept, byGiven = byId("colour").value === "given";
  values = byGiven ? given() : drawn(row);
  const most = values.map(array => array.reduce((a, b) => Math.max(a, b), 1e-9));
  if (byId("scale").value === "one") most.fill(Math.max(...most));
  values.forEach((array, doc) => array.forEach((value, key) => {
    // What is little is to be seen beside what is much.
    spans[doc][key].style.setProperty("--a", (.95 * (value / most[doc]) ** .7).toFixed(3));
  }));
  const over = row === null ? every : [row];
  boxes.forEach((box, doc) => box.parentNode.classList.toggle("away", !over.some(one => sees(one, doc))));
  showShares(over);
  showGrid(over);
  spans[0].forEach((span, token) => {
    if (rowOf.has(token)) span.setAttribute("aria-selected", rowOf.get(token) === kept);
  });
  byId("status").textContent = row === null
    ? `Mean of ${rows.length} tokens` : `Token ${rows[row]}, ${named(0, rows[row])}, read:`;
}
const named = (doc, key) => "\u201c\u2068" + (spans[doc][key].textContent.trim() || "no text") + "\u2069\u201d";
const mean = list => list.reduce((a, b) => a + b, 0) / list.length;

function showShares(over) {
  const layerSet = chosenLayers(), headSet = chosenHeads();
  bars.forEach((bar, doc) => {
    const share = mean(over.map(row => shareOf(row, doc, layerSet, headSet)));
    const seen = over.some(row => sees(row, doc));
    bar.button.classList.toggle("away", !seen);
    bar.number.textContent = seen ? percent(share) : "not in view";
    bar.fill.style.width = 100 * share + "%";
    bar.button.setAttribute("aria-pressed", looked === doc);
  });
}
function showGrid(over) {
  const asked = looked === null ? [...Array(documents).keys()].slice(1) : [looked];
  byId("grid").firstElementChild.textContent = "By layer and head: share of "
    + (looked === null ? "the linked documents" : "\u2068" + titles[looked] + "\u2069");
  const layer = byId("layer")?.value, head = byId("head")?.value;
  for (const cell of cells) {
    const share = asked.reduce((sum, doc) => sum + mean(over.map(row => shareOf(row, doc, [cell.l], [cell.h]))), 0);
    cell.td.style.setProperty("--a", Math.min(1, share).toFixed(3));
    cell.td.title = `layer ${cell.l}, head ${cell.h}: ${percent(share)}`;
    cell.td.classList.toggle("chosen", (layer || head) ? (!layer || Number(layer) === cell.l) && (!head || Number(head) === cell.h) : false);
  }
}

const element = (name, parent, text) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
};
const bars = titles.map((title, doc) => {
  const button = element("button", element("li", byId("shares")));
  button.type = "button";
  element("bdi", button, title);
  const number = element("span", button), bar = element("span", button);
  bar.className = "bar";
  button.onclick = () => { looked = looked === doc ? null : doc; reveal(doc); show(); };
  return {button, number, fill: element("i", bar)};
});
const cells = [];
{
  const table = byId("grid").querySelector("table");
  const top = element("tr", element("thead", table));
  element("th", top, "head");
  for (let h = 0; h < heads; h++) element("th", top, h % Math.ceil(heads / 8) ? "" : h);
  const body = element("tbody", table);
  for (let l = 0; l < layers; l++) {
    const line = element("tr", body);
    element("th", line, l ? l : "layer 0");
    for (let h = 0; h < heads; h++) {
      const td = element("td", line);
      td.onclick = () => {
        const same = td.classList.contains("chosen") && byId("head")?.value === String(h);
        if (byId("layer")) byId("layer").value = same ? "" : l;
        if (byId("head")) byId("head").value = same ? "" : h;
        show();
      };
      cells.push({l, h, td});
    }
  }
  if (documents === 1) byId("grid").hidden = true;
}

// Pointer, keyboard and controls.
let due = 0;
const later = () => { cancelAnimationFrame(due); due = requestAnimationFrame(show); };
const point = row => { if (row !== pointed) { pointed = row; later(); } };
const rowAt = target => rowOf.get(spans[0].indexOf(target.closest(".tokens > span"))) ?? null;
const keep = row => {
  kept = kept === row ? null : row;
  pointed = null;
  show();
  if (kept !== null && documents > 1) {
    const share = boxes.map((_, doc) => doc ? shareOf(kept, doc, chosenLayers(), chosenHeads()) : 0);
    reveal(share.indexOf(Math.max(...share)));
  }
};
// Where the linked documents scroll by themselves, show this one.
const reveal = doc => {
  const pane = document.querySelector(".linked"), section = boxes[doc].parentNode;
  if (doc) pane.scrollTop += section.getBoundingClientRect().top - pane.getBoundingClientRect().top - 16;
};
boxes[0].addEventListener("mouseover", event => point(rowAt(event.target)));
boxes[0].addEventListener("mouseleave", () => point(null));
boxes[0].addEventListener("click", event => {
  const row = rowAt(event.target);
  if (row !== null) { focusRow(row); keep(row); }
});
boxes[0].addEventListener("focusin", event => { if (event.target.matches(":focus-visible")) point(rowAt(event.target)); });
boxes[0].addEventListener("focusout", () => point(null));
boxes.slice(1).forEach((box, index) => box.addEventListener("mouseover", event => {
  const key = spans[index + 1].indexOf(event.target.closest(".tokens > span"));
  if (key >= 0 && byId("colour").value === "drawn")
    byId("status").textContent = `Token ${key}, ${named(index + 1, key)}, drew ${(100 * values[index + 1][key]).toFixed(2)} %`;
}));
let stop = 0;  // the row that Tab comes to
function focusRow(row) {
  spans[0][rows[stop]].tabIndex = -1;
  stop = row;
  spans[0][rows[row]].tabIndex = 0;
  spans[0][rows[row]].focus();
}
// The nearest token of the next line, up or down.
function besides(row, down) {
  const here = spans[0][rows[row]].getBoundingClientRect();
  let best = null, least = Infinity, line = null;
  for (let other = row + down; other >= 0 && other < rows.length; other += down) {
    const there = spans[0][rows[other]].getBoundingClientRect();
    if (Math.abs(there.top - here.top) < here.height / 2) continue;
    line ??= there.top;
    if (Math.abs(there.top - line) > there.height / 2) break;
    const off = Math.abs(there.left - here.left);
    if (off < least) { least = off; best = other; }
  }
  return best;
}
boxes[0].addEventListener("keydown", event => {
  const moves = {
    ArrowRight: () => stop + 1, ArrowLeft: () => stop - 1, Home: () => 0, End: () => rows.length - 1,
    ArrowDown: () => besides(stop, 1), ArrowUp: () => besides(stop, -1),
  };
  if (event.key in moves) {
    const to = moves[event.key]();
    if (to !== null && to >= 0 && to < rows.length) focusRow(to);
  } else if (event.key === "Enter" || event.key === " ") keep(stop);
  else return;
  event.preventDefault();
});
const all = () => { kept = pointed = null; show(); };
document.addEventListener("keydown", event => { if (event.key === "Escape") all(); });
byId("all").onclick = all;
for (const id of ["layer", "head", "colour", "scale"]) byId(id)?.addEventListener("change", show);
rows.forEach((token, row) => { spans[0][token].tabIndex = row ? -1 : 0; });
const measure = () => document.body.style.setProperty("--header", document.querySelector("header").offsetHeight + "px");
addEventListener("resize", measure);
measure();
show();
})();
