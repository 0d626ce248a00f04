// The containers in the graph: a canvas of our own over cytoscape's. There may be thousands of them, and cytoscape draws
// each node by itself, which takes a large part of a second. Dots of one network are one path here.
import { label } from "/model.js";

const RADIUS = 9;
const FONT = 11;
const READABLE = 6; // pixels of a label: smaller ones are left out
const ROUND = 2.5; // pixels of a dot's radius: smaller ones are squares, which are cheaper
const LONGEST = 18; // characters of a label

export class Dots {
  constructor(box, graph) {
    this.graph = graph;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "dots";
    box.append(this.canvas);
    this.all = [];
    this.keys = new Set(); // of containers that cytoscape draws: they are in a path, or chosen
    this.network = ""; // if one is chosen: the others step back
    this.back = false; // all step back for a path
    this.colours = {};
    this.frame = 0;
    graph.on("render", () => this.draw());
    this.resize();
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.canvas.remove();
  }

  // Takes the containers' nodes of the layout.
  put(nodes) {
    this.all = nodes.map(({ container, position }) => ({ key: container.key, network: container.network, ...position, label: short(label(container)) }));
    this.later();
  }

  mark(keys, network, back) {
    Object.assign(this, { keys, network, back });
    this.later();
  }

  style(order) {
    const sheet = getComputedStyle(document.documentElement);
    const colour = (name) => sheet.getPropertyValue(`--${name}`).trim();
    this.colours = Object.fromEntries(order.map((name, index) => [name, colour(`net-${index % 8}`)]));
    this.ink = colour("ink");
    this.muted = colour("muted");
    this.font = `${FONT}px ${getComputedStyle(document.body).fontFamily}`;
    this.later();
  }

  resize() {
    this.ratio = devicePixelRatio;
    this.canvas.width = this.graph.width() * this.ratio;
    this.canvas.height = this.graph.height() * this.ratio;
    this.later();
  }

  // Returns the key of the container at a position of the layout, "" if there is none.
  at({ x, y }) {
    const near = Math.max(RADIUS, 4 / this.graph.zoom());
    return this.all.find((one) => Math.abs(one.x - x) <= near && Math.abs(one.y - y) <= near)?.key ?? "";
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame); // cytoscape has drawn in this frame, too: once is enough
    const paper = this.canvas.getContext("2d");
    const zoom = this.graph.zoom();
    const pan = this.graph.pan();
    const seen = this.graph.extent();
    paper.setTransform(1, 0, 0, 1, 0, 0);
    paper.clearRect(0, 0, this.canvas.width, this.canvas.height);
    paper.setTransform(zoom * this.ratio, 0, 0, zoom * this.ratio, pan.x * this.ratio, pan.y * this.ratio);
    const shown = this.all.filter((one) => !this.keys.has(one.key) && one.x > seen.x1 - 40 && one.x < seen.x2 + 40 && one.y > seen.y1 - 30 && one.y < seen.y2 + 30);
    const round = RADIUS * zoom >= ROUND;
    for (const [network, dots] of Map.groupBy(shown, (one) => one.network)) {
      paper.globalAlpha = this.alpha(network);
      paper.fillStyle = this.colours[network] ?? this.muted;
      paper.beginPath();
      for (const { x, y } of dots) {
        if (round) {
          paper.moveTo(x + RADIUS, y);
          paper.arc(x, y, RADIUS, 0, 2 * Math.PI);
        } else paper.rect(x - RADIUS, y - RADIUS, 2 * RADIUS, 2 * RADIUS);
      }
      paper.fill();
    }
    if (FONT * zoom < READABLE) return;
    paper.fillStyle = this.ink;
    paper.font = this.font;
    paper.textAlign = "center";
    paper.textBaseline = "top";
    for (const { x, y, network, label: text } of shown) {
      paper.globalAlpha = this.alpha(network);
      paper.fillText(text, x, y + RADIUS + 4);
    }
  }

  alpha(network) {
    return this.back || (this.network && this.network !== network) ? 0.25 : 1;
  }
}

export function short(text) {
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
}
