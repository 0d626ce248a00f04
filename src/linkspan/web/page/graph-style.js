// How the graph looks.

// The colours are those of style.css, in light or dark.
export function style(order) {
  const sheet = getComputedStyle(document.documentElement);
  const colour = (name) => sheet.getPropertyValue(`--${name}`).trim();
  const font = getComputedStyle(document.body).fontFamily;
  const levels = ["ok", "idle", "warn", "bad"];
  return [
    { selector: "node", style: { label: "data(label)", color: colour("ink"), "font-family": font, "font-size": 11, "min-zoomed-font-size": 6, "overlay-opacity": 0, "z-index-compare": "manual" } },
    { selector: "node[kind = 'host']", style: { shape: "round-rectangle", "corner-radius": 12, width: "data(width)", height: "data(height)", "background-color": colour("surface"), "border-width": 1.2, "border-color": colour("line"), "text-valign": "data(side)", "text-halign": "center", "text-margin-y": "data(margin)", "font-size": 13, "min-zoomed-font-size": 4, "font-weight": 600, "z-index": 0 } },
    ...levels.map((level) => ({ selector: `node[kind = 'host'][level = '${level}']`, style: level === "ok" ? { color: colour("ink") } : { "border-color": colour(level), "border-width": 2, color: colour(level) } })),
    { selector: "node[kind = 'kernel']", style: { shape: "round-rectangle", "corner-radius": 9, width: 86, height: 20, "background-color": colour("quiet"), "border-width": 1, "border-color": colour("line"), "text-valign": "center", "font-size": 10, color: colour("muted"), "z-index": 2 } },
    { selector: "node[kind = 'container']", style: { width: 18, height: 18, "background-color": colour("muted"), "border-width": 2, "border-color": colour("surface"), "text-valign": "bottom", "text-margin-y": 4, "z-index": 3 } },
    ...order.map((name, index) => ({ selector: `node[network = ${JSON.stringify(name)}]`, style: { "background-color": colour(`net-${index % 8}`) } })),
    { selector: "node[kind = 'router']", style: { shape: "round-hexagon", width: 104, height: 40, "background-color": colour("surface"), "border-width": 1.5, "border-color": colour("line-strong"), "text-valign": "center", "text-wrap": "wrap", "z-index": 2 } },
    { selector: "node[kind = 'router'][level = 'bad']", style: { "border-color": colour("bad"), color: colour("bad") } },
    { selector: "node[kind = 'outside']", style: { shape: "round-rectangle", width: 90, height: 24, "background-color": colour("quiet"), "border-width": 1, "border-style": "dashed", "border-color": colour("muted"), "text-valign": "center", "z-index": 2 } },
    { selector: "edge", style: { width: 1.4, "line-color": colour("line-strong"), "curve-style": "straight", "font-family": font, "font-size": 9, color: colour("muted"), "text-background-color": colour("ground"), "text-background-opacity": 1, "text-background-padding": 2, "overlay-opacity": 0, "z-index-compare": "manual", events: "no" } },
    { selector: "edge[pair]", style: { "curve-style": "unbundled-bezier", "control-point-distances": "data(bend)", label: "data(label)", "min-zoomed-font-size": 8, "z-index": 1, events: "yes" } },
    { selector: "edge.near", style: { "line-color": colour("accent"), color: colour("accent") } },
    { selector: "edge.chosen", style: { width: 3 } },
    { selector: "edge[problem = 1]", style: { "line-color": colour("bad"), "line-style": "dashed", color: colour("bad"), "font-size": 14 } },
    { selector: "edge[hop]", style: { "curve-style": "straight", width: 3, "line-color": colour("accent"), "target-arrow-color": colour("accent"), "target-arrow-shape": "triangle", "arrow-scale": 0.9, "z-index": 4 } },
    { selector: "edge[hop = 'back']", style: { "curve-style": "unbundled-bezier", "control-point-distances": 14, width: 1.6, "line-style": "dashed", opacity: 0.75 } },
    { selector: "edge[hop = 'stopped']", style: { "line-color": colour("bad"), "target-arrow-color": colour("bad"), "line-style": "dashed", label: "data(label)", color: colour("bad"), "font-size": 18 } },
    { selector: "edge.under", style: { label: "", opacity: 0.4 } },
    { selector: "node.chosen, node.end", style: { "border-color": colour("accent"), "border-width": 3 } },
    { selector: "node.chosen[kind = 'container'], node.end[kind = 'container']", style: { width: 24, height: 24, "font-weight": 700 } },
    { selector: "node.passed[kind = 'kernel']", style: { "border-color": colour("accent"), color: colour("ink"), "border-width": 2 } },
    { selector: "node.stopped", style: { "border-color": colour("bad"), "border-width": 4, color: colour("bad") } },
  ];
}
