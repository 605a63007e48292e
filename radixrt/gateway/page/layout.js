// Where each run is drawn. A run is a band: its length tells its tokens (on a logarithmic scale), what
// continues it begins at its end, and its height is shared out among what continues it. Siblings keep
// the order in which they were first seen, so that nothing jumps when others come and go.

const GAP = 1, MIN_BAND = 0.5, ROOT_GAP = 10, MORE_WIDTH = 22;

const lengthOf = (tokens) => (tokens ? 16 + 25 * Math.log2(1 + tokens / 8) : 0);

// Sets `target` ({x, y, w, h}) of the nodes that are shown; returns {shown, mores}: the nodes, and the
// places where there was no room ({x, y, w, h, count}).
function layOut(picture, zoom, width, height) {
  const children = picture.family();
  const tops = zoom ? [zoom] : (children.get(0) ?? []).sort((a, b) => a.seq - b.seq);
  const measured = new Map();
  const stack = [...tops];
  const order = [];
  while (stack.length) {
    const node = stack.pop();
    order.push(node);
    for (const child of children.get(node.id) ?? []) stack.push(child);
  }
  for (const node of order.reverse()) {
    const own = Math.sqrt(node.tokens + 4);
    let weight = 0, below = 0, count = 1, first = node.seq, reach = 0, used = node.used ?? 0;
    for (const child of children.get(node.id) ?? []) {
      const m = measured.get(child.id);
      weight += m.weight;
      below += m.below;
      count += m.count;
      first = Math.min(first, m.first);
      reach = Math.max(reach, m.reach);
      used = Math.max(used, m.used);
    }
    measured.set(node.id, {
      weight: Math.max(weight, own), below: below + node.tokens, first, reach: reach + lengthOf(node.tokens), used, count,
    });
  }
  const reach = Math.max(1, ...tops.map((top) => measured.get(top.id).reach));
  const scale = Math.min(4, (width - 6) / reach);
  const shown = [], mores = [];
  const place = (nodes, x, y, h, isTop, unseen = 0) => {
    const sorted = nodes.length > 1 ? [...nodes].sort((a, b) => measured.get(a.id).first - measured.get(b.id).first) : nodes;
    // Runs that the runtime did not tell of, for they are too many, share a place at the end.
    const rest = unseen ? 3 * Math.sqrt(unseen) : 0;
    const total = sorted.reduce((sum, n) => sum + measured.get(n.id).weight, rest);
    const each = h / Math.max(1, sorted.length);
    const gap = isTop ? ROOT_GAP : each > 5 ? GAP : each > 2 ? 0.5 : 0;
    const room = h - gap * (sorted.length - (rest ? 0 : 1));
    let at = y, hidden = 0, hiddenFrom = y;
    const flush = () => {
      if (hidden) mores.push({ x, y: hiddenFrom, w: MORE_WIDTH, h: Math.max(1.5, at - hiddenFrom - gap), count: hidden });
      hidden = 0;
    };
    for (const node of sorted) {
      const m = measured.get(node.id);
      const own = Math.max(0, room) * (m.weight / total);
      if (own < MIN_BAND && !isTop && !node.locked) {
        if (!hidden) hiddenFrom = at;
        hidden += m.count;
        at += own + gap;
        node.target = null;
        continue;
      }
      flush();
      const w = lengthOf(node.tokens) * scale;
      node.target = { x, y: at, w, h: Math.max(own, node.locked ? 1.5 : MIN_BAND) };
      node.below = m.below;
      node.idle = picture.now - m.used;
      shown.push(node);
      const next = children.get(node.id);
      const told = (next ?? []).filter((child) => child.tier === node.tier).length;
      if (next || node.children) place(next ?? [], x + w + (w ? GAP : 0), at, node.target.h, false, Math.max(0, node.children - told));
      at += own + gap;
    }
    flush();
    if (rest) mores.push({ x, y: at, w: MORE_WIDTH, h: Math.max(1.5, Math.min(y + h - at, room * (rest / total))), count: unseen });
  };
  for (const node of picture.nodes.values()) node.target = null;
  place(tops, 3, 2, height - 4, true);
  return { shown, mores };
}

// A node that is new begins where what it came from is: at its first child's (it was split), else at
// the end of its parent.
function beginning(picture, node) {
  for (const other of picture.nodes.values())
    if (other.parent === node.id && other.rect) return { ...other.rect };
  const parent = picture.nodes.get(node.parent)?.rect;
  const target = node.target;
  return parent ? { x: parent.x + parent.w, y: target.y, w: 0, h: target.h } : { ...target, w: 0 };
}
