// Draws the tree, sixty times a second while something moves and not at all while nothing does.

const PULSE_WIDTH = 190;
const REDUCED = matchMedia("(prefers-reduced-motion: reduce)");

class TreeCanvas {
  constructor(canvas, picture) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.picture = picture;
    this.zoom = null;
    this.selected = 0;
    this.hovered = 0;
    this.isDim = false;
    this.shown = [];
    this.mores = [];
    this.isStale = true;
    this.last = 0;
    this.frame = 0;
    this.labels = new Map();
    this.readColours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.readColours(); this.wake(); });
    new ResizeObserver(() => { this.isStale = true; this.wake(); }).observe(canvas);
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    this.colours = Object.fromEntries(["device", "host", "disk", "generated", "gone", "glow", "panel", "muted", "text", "accent"]
      .map((name) => [name, style.getPropertyValue("--" + name).trim()]));
    this.onNode = style.getPropertyValue("--on-node").trim();
    this.cold = Number(style.getPropertyValue("--cold"));
    this.font = "11px " + style.getPropertyValue("--mono").trim();
  }

  changed() {
    this.isStale = true;
    this.wake();
  }

  wake() {
    this.frame ||= requestAnimationFrame((time) => { this.frame = 0; this.draw(time); });
  }

  at(x, y) {
    return this.shown.find(({ rect: r }) => r && x >= r.x && x < r.x + r.w && y >= r.y && y < r.y + r.h);
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.isStale = true;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return [width, height];
  }

  draw(time) {
    const [width, height] = this.resize();
    const { context: c, picture } = this;
    if (this.zoom && !picture.nodes.has(this.zoom)) this.zoom = null;
    if (this.isStale) {
      const laid = layOut(picture, picture.nodes.get(this.zoom), width, height);
      this.shown = laid.shown;
      this.mores = laid.mores;
      this.isStale = false;
      for (const node of picture.nodes.values()) if (!node.target) node.rect = null;
    }
    const step = Math.min(64, time - this.last || 16);
    this.last = time;
    const share = REDUCED.matches ? 1 : 1 - Math.exp(-step / 110);
    let isMoving = false;
    c.clearRect(0, 0, width, height);
    c.globalAlpha = this.isDim ? 0.35 : 1;
    for (const node of this.shown) isMoving = this.move(node, share) || isMoving;
    const now = performance.now();
    for (const node of this.shown) isMoving = this.band(node, now) || isMoving;
    this.foldedAway();
    c.font = this.font;
    c.textBaseline = "middle";
    for (const node of this.shown) this.label(node);
    isMoving = this.fading(now) || isMoving;
    this.outline(picture.nodes.get(this.hovered), this.colours.text, 1);
    this.outline(picture.nodes.get(this.selected), this.colours.accent, 2);
    if (isMoving) this.wake();
  }

  move(node, share) {
    node.rect ??= beginning(this.picture, node);
    const { rect, target } = node;
    let isMoving = false;
    for (const side of ["x", "y", "w", "h"]) {
      const way = target[side] - rect[side];
      if (Math.abs(way) < 0.25) rect[side] = target[side];
      else {
        rect[side] += way * share;
        isMoving = true;
      }
    }
    return isMoving;
  }

  band(node, now) {
    const { context: c, colours } = this;
    const { x, y, w, h } = node.rect;
    if (w < 0.5) return false;
    const radius = Math.min(3, h / 3, w / 3);
    const base = c.globalAlpha;
    const warmth = node.locked ? 1 : Math.max(0, 1 - node.idle / 120);
    c.globalAlpha = base * (this.cold + (1 - this.cold) * warmth);
    c.fillStyle = node.tier === "host" ? colours.host : colours.device;
    this.fill(x, y, w, h, radius);
    c.globalAlpha = base;
    // What a slower tier has as well is a seam along the lower edge.
    if (h >= 6) {
      const seam = Math.min(3, h / 5);
      if (node.disk) this.seam(x, y + h - seam, w * Math.min(1, node.disk / node.tokens), seam, colours.disk);
      else if (node.host && node.tier === "device") this.seam(x, y + h - seam, w * Math.min(1, node.host / node.tokens), seam, colours.host);
    }
    if (node.locked && w > 5) {
      c.fillStyle = colours.generated;
      c.fillRect(x + w - Math.min(4, w / 4), y, Math.min(4, w / 4), h);
    }
    const age = now - Math.max(node.hit, node.born - 400);
    if (age >= GLOW_MS) return false;
    c.globalAlpha = base * (1 - age / GLOW_MS) ** 1.5 * 0.42;
    c.fillStyle = colours.glow;
    this.fill(x, y, w, h, radius);
    c.globalAlpha = base;
    this.pulse(node, now);
    return true;
  }

  // A hit runs through the bands of its prefix, from the first token on.
  pulse(node, now) {
    const done = (now - node.pulse) / PULSE_MS;
    if (done >= 1 || REDUCED.matches) return;
    const { context: c, colours } = this;
    const { x, y, w, h } = node.rect;
    const head = done * (this.canvas.clientWidth + PULSE_WIDTH);
    const from = Math.max(x, head - PULSE_WIDTH), to = Math.min(x + w, head);
    if (from >= to) return;
    const paint = c.createLinearGradient(head - PULSE_WIDTH, 0, head, 0);
    paint.addColorStop(0, "transparent");
    paint.addColorStop(0.85, colours.glow);
    paint.addColorStop(1, "transparent");
    const base = c.globalAlpha;
    c.globalAlpha = base * 0.85;
    c.fillStyle = paint;
    c.fillRect(from, y, to - from, h);
    c.globalAlpha = base;
  }

  // Most bands are thin, and corners of them nobody sees.
  fill(x, y, w, h, radius) {
    const { context: c } = this;
    if (h < 5) return c.fillRect(x, y, w, h);
    c.beginPath();
    c.roundRect(x, y, w, h, radius);
    c.fill();
  }

  seam(x, y, w, h, colour) {
    this.context.fillStyle = colour;
    this.context.fillRect(x + 1, y, Math.max(0, w - 2), h);
  }

  label(node) {
    const { x, y, w, h } = node.rect;
    if (h < 11 || w < 22) return;
    const { context: c } = this;
    const room = Math.floor((w - 10) / 6.65);
    const count = node.tokens > 999 ? (node.tokens / 1000).toFixed(1) + "k" : String(node.tokens);
    const text = node.text == null ? count + (room > 12 ? " tokens" : "") : shownText(node.text);
    const isLong = text.length > room;
    const line = isLong ? text.slice(0, Math.max(1, room - 1)) + "…" : text;
    c.fillStyle = this.onNode;
    c.fillText(line, x + 5, y + Math.min(h / 2, 60) + 0.5);
    if (node.text != null && !isLong && room - line.length > count.length + 3) {
      const base = c.globalAlpha;
      c.globalAlpha = base * 0.7;
      c.textAlign = "right";
      c.fillText(count, x + w - 8, y + Math.min(h / 2, 60) + 0.5);
      c.textAlign = "left";
      c.globalAlpha = base;
    }
  }

  foldedAway() {
    const { context: c, colours } = this;
    for (const more of this.mores) {
      c.fillStyle = colours.muted;
      const base = c.globalAlpha;
      c.globalAlpha = base * 0.35;
      for (let y = more.y; y < more.y + more.h; y += 3) c.fillRect(more.x, y, more.w, 1.5);
      c.globalAlpha = base;
      if (more.h < 9) continue;
      c.font = this.font;
      c.textBaseline = "middle";
      c.fillStyle = colours.muted;
      c.fillText(`+${more.count}`, more.x + more.w + 4, more.y + more.h / 2);
    }
  }

  fading(now) {
    const { context: c, colours, picture } = this;
    picture.ghosts = picture.ghosts.filter((ghost) => ghost.until > now);
    const base = c.globalAlpha;
    c.setLineDash([3, 3]);
    for (const { rect, until } of picture.ghosts) {
      const left = (until - now) / FADE_MS;
      c.globalAlpha = base * left * 0.5;
      c.fillStyle = c.strokeStyle = colours.gone;
      c.fillRect(rect.x, rect.y, rect.w, rect.h);
      c.globalAlpha = base * left;
      c.strokeRect(rect.x + 0.5, rect.y + 0.5, Math.max(0, rect.w - 1), Math.max(0, rect.h - 1));
    }
    c.setLineDash([]);
    c.globalAlpha = base;
    return picture.ghosts.length > 0;
  }

  outline(node, colour, width) {
    if (!node?.rect) return;
    const { x, y, w, h } = node.rect;
    this.context.strokeStyle = colour;
    this.context.lineWidth = width;
    this.context.strokeRect(x - 0.5, y - 0.5, w + 1, h + 1);
    this.context.lineWidth = 1;
  }
}

const shownText = (text) => text.trimStart().replace(/\n/g, "⏎").replace(/\s/g, " ");
