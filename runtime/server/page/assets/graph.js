// The link graph as it grows: the root left, what a document reads right of it. Boxes glide to their new places.

import { $, count, svg } from "./dom.js";

const WIDTH = 168, HEIGHT = 40, COLUMN = 230, ROW = 52, MARGIN = 8;

export class Graph {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.clear();
  }

  clear() {
    this.nodes = new Map();
    this.edges = new Map();
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
      svg("rect", { class: "stripe", width: 5, height: HEIGHT, rx: 2.5 }), name, told);
    const from = this.nodes.get(parent);
    this.nodes.set(number, { number, box, told, depth: 0, x: from?.x ?? MARGIN, y: from?.y ?? MARGIN });
    this.boxes.append(box);
    if (from) this.connect(parent, number);
    else this.arrange();
  }

  connect(from, to) {
    const name = `${from} ${to}`;
    if (this.edges.has(name) || from === to || !this.nodes.has(from) || !this.nodes.has(to)) return;
    const path = svg("path", { class: "edge" });
    this.paths.append(path);
    this.edges.set(name, { from: this.nodes.get(from), to: this.nodes.get(to), path });
    this.arrange();
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

  // Columns by longest path, within a column by the middle of what points there; then everything glides.
  arrange() {
    const nodes = [...this.nodes.values()], edges = [...this.edges.values()];
    for (const node of nodes) node.depth = 0;
    for (let moved = true, round = 0; moved && round < nodes.length; round++) {
      moved = false;
      for (const { from, to } of edges) if (to.depth <= from.depth) { to.depth = from.depth + 1; moved = true; }
    }
    const columns = [];
    for (const node of nodes) (columns[node.depth] ??= []).push(node);
    const tallest = Math.max(...columns.map(column => column.length));
    for (const column of columns) {
      const middle = node => mean(edges.filter(edge => edge.to === node).map(edge => edge.from.toY)) ?? 0;
      const places = new Map(column.map(node => [node, middle(node)]));
      column.sort((one, other) => places.get(one) - places.get(other) || one.number - other.number);
      column.forEach((node, at) => {
        node.toX = MARGIN + node.depth * COLUMN;
        node.toY = MARGIN + (at + (tallest - column.length) / 2) * ROW;
      });
    }
    this.picture.setAttribute("width", MARGIN * 2 + (columns.length - 1) * COLUMN + WIDTH);
    this.picture.setAttribute("height", MARGIN * 2 + (tallest - 1) * ROW + HEIGHT);
    if (!this.moving) this.moving = requestAnimationFrame(() => this.glide());
  }

  glide() {
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
      const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
      const bend = Math.max(24, (x2 - x1) / 2);
      path.setAttribute("d", `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`);
    }
    this.moving = settled ? 0 : requestAnimationFrame(() => this.glide());
  }
}

const mean = values => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);

function shorten(title) {
  const letters = [...title];
  return letters.length > 21 ? `${letters.slice(0, 20).join("")}…` : title;
}
