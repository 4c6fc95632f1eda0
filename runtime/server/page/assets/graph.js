// The link graph as it grows: the root on top, what a document reads below it. Boxes glide to their new places.

import { $, count, svg } from "./dom.js";

const WIDTH = 160, HEIGHT = 40, GAP = 12, BETWEEN = 34, MARGIN = 10, PITCH = WIDTH + GAP;

export class Graph {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.nodes.size && this.change()).observe($("graph"));
    this.clear();
  }

  clear() {
    this.nodes = new Map();
    this.edges = new Map();
    this.changed = false;
    this.paths = svg("g", { class: "edges" });
    this.boxes = svg("g");
    this.picture = svg("svg", { role: "group", "aria-label": "Documents and their links" }, this.paths, this.boxes);
    $("graph").replaceChildren(this.picture);
  }

  add({ number, title, source, parent }) {
    const name = svg("text", { x: 14, y: 17, class: "title" }, shorten(title));
    const told = svg("text", { x: 14, y: 32, class: "told" }, number ? source : "root");
    const choose = () => this.onChoose(number);
    const box = svg("g", {
      class: `node ${number ? source : "root"} writing`, tabindex: 0, role: "button", "aria-label": title, onclick: choose,
      onkeydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } },
    }, svg("title", {}, title), svg("rect", { width: WIDTH, height: HEIGHT, rx: 7 }),
      svg("rect", { class: "stripe", width: 5, height: HEIGHT, rx: 2.5 }),
      svg("svg", { width: WIDTH - 6, height: HEIGHT }, name, told)); // what is too long is cut off
    const from = this.nodes.get(parent);
    this.nodes.set(number, { number, box, told, depth: 0, x: from?.x ?? $("graph").clientWidth / 2, y: from?.y ?? MARGIN });
    this.boxes.append(box);
    if (from) this.connect(parent, number);
    else this.change();
  }

  connect(from, to) {
    const name = `${from} ${to}`;
    if (this.edges.has(name) || from === to || !this.nodes.has(from) || !this.nodes.has(to)) return;
    const path = svg("path", { class: "edge" });
    this.paths.append(path);
    this.edges.set(name, { from: this.nodes.get(from), to: this.nodes.get(to), path });
    this.change();
  }

  finish({ document: number, tokens, grants }) {
    const node = this.nodes.get(number);
    node.box.classList.remove("writing");
    node.told.textContent += ` · ${count(tokens, "token")}`;
    for (const grant of grants) {
      this.connect(number, grant.document);
      const edge = this.edges.get(`${number} ${grant.document}`);
      if (edge) edge.path.classList.toggle("evicted", grant.end !== null);
    }
  }

  mark(number) {
    for (const node of this.nodes.values()) node.box.classList.toggle("shown", node.number === number);
  }

  // However much changes, all is arranged once a frame: a graph of hundreds would hold up the page.
  change() {
    this.changed = true;
    this.moving ||= requestAnimationFrame(() => this.glide());
  }

  // Layers by longest path, in a layer by the middle of what points there, in as many lines as it takes; all glide there.
  arrange() {
    const nodes = [...this.nodes.values()], edges = [...this.edges.values()];
    for (const node of nodes) node.depth = 0;
    for (let moved = true, round = 0; moved && round < nodes.length; round++) {
      moved = false;
      for (const { from, to } of edges) if (to.depth <= from.depth) { to.depth = from.depth + 1; moved = true; }
    }
    const layers = [];
    for (const node of nodes) (layers[node.depth] ??= []).push(node);
    const room = $("graph").clientWidth - 2 * MARGIN;
    const most = Math.max(1, Math.floor((room + GAP) / PITCH));
    let y = MARGIN;
    for (const layer of layers) {
      const middle = node => mean(edges.filter(edge => edge.to === node).map(edge => edge.from.toX)) ?? 0;
      const places = new Map(layer.map(node => [node, middle(node)]));
      layer.sort((one, other) => places.get(one) - places.get(other) || one.number - other.number);
      // Every second line has one box less: arrows to the next one go through its gaps.
      for (let at = 0, line = [], odd = 0; at < layer.length; at += line.length, odd ^= 1, y += HEIGHT + GAP) {
        const before = line.length;
        line = layer.slice(at, at + Math.max(1, most - odd));
        const over = line.length % 2 === before % 2 && before ? PITCH / 2 : 0;
        const left = MARGIN + (room - line.length * PITCH + GAP) / 2 - (most > 1 ? over : 0);
        line.forEach((node, place) => { node.toX = left + place * PITCH; node.toY = y; });
      }
      y += BETWEEN - GAP;
    }
    this.picture.setAttribute("height", y - BETWEEN + MARGIN);
  }

  glide() {
    if (this.changed) this.arrange();
    this.changed = false;
    let settled = true;
    for (const node of this.nodes.values()) {
      const share = this.still.matches ? 1 : 0.2;
      for (const [at, to] of [["x", "toX"], ["y", "toY"]]) {
        const way = node[to] - node[at];
        node[at] = Math.abs(way) < 0.5 ? node[to] : node[at] + way * share;
        settled &&= node[at] === node[to];
      }
      node.box.setAttribute("transform", `translate(${node.x} ${node.y})`);
    }
    for (const { from, to, path } of this.edges.values()) {
      const [x1, y1, x2, y2] = [from.x + WIDTH / 2, from.y + HEIGHT, to.x + WIDTH / 2, to.y];
      const bend = Math.max(12, (y2 - y1) / 2);
      path.setAttribute("d", `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`);
    }
    this.moving = settled ? 0 : requestAnimationFrame(() => this.glide());
  }
}

const mean = values => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);

function shorten(title) {
  const letters = [...title];
  return letters.length > 20 ? `${letters.slice(0, 19).join("")}…` : title;
}
