// The picture that this viewer has of the runtime: nodes by id, brought up to date by each answer.
// `radixrt/inspection.py` describes what the runtime tells.

const MAX_NODES = 1000;
const GLOW_MS = 1800, PULSE_MS = 750, FADE_MS = 1300;

class Picture {
  constructor() {
    this.forget();
  }

  forget() {
    this.generation = 0;
    this.nodes = new Map();
    this.ghosts = [];
    this.seen = 0;
    this.epoch = null;
    this.now = 0;
  }

  // Take an answer in; returns whether the shape of the tree may have changed.
  take(answer, time) {
    if (answer.epoch !== this.epoch) this.forget();
    this.epoch = answer.epoch;
    this.now = answer.now;
    const before = this.nodes;
    // A run that was joined to the one behind it is not evicted: that one has its tokens now.
    const joined = new Set(answer.nodes.map((told) => before.get(told.id)?.parent));
    if (answer.is_full) this.nodes = new Map();
    // Nor is a page that was not full when a fuller one takes its place.
    const replaced = new Set(answer.nodes.map((told) => (before.has(told.id) ? 0 : told.parent)));
    for (const id of answer.gone) this.drop(id, time, joined.has(id) || replaced.has(before.get(id)?.parent));
    for (const told of answer.nodes) {
      const old = this.nodes.get(told.id) ?? before.get(told.id);
      const node = old ?? { seq: ++this.seen, rect: null, hit: -1e9, pulse: -1e9, born: time };
      const isHit = old && (told.uses > old.uses || (told.used ?? -1) > (old.used ?? -1));
      Object.assign(node, { namespace: undefined, text: undefined }, told);
      if (isHit) light(node, time);
      this.nodes.set(told.id, node);
    }
    if (answer.is_full)
      for (const [id, node] of before) if (!this.nodes.has(id)) this.fade(node, time);
    // A hit lights the whole way to it.
    for (const told of answer.nodes) {
      let node = this.nodes.get(told.id);
      if (node?.hit !== time) continue;
      while ((node = this.nodes.get(node.parent)) && node.hit !== time) light(node, time);
    }
    this.generation = answer.generation;
    this.prune();
    return answer.is_full || answer.gone.length > 0 || answer.nodes.length > 0;
  }

  drop(id, time, isJoined) {
    const node = this.nodes.get(id);
    if (!node) return;
    this.nodes.delete(id);
    if (!isJoined) this.fade(node, time);
  }

  fade(node, time) {
    if (node.rect && node.tokens && this.ghosts.length < 300)
      this.ghosts.push({ rect: { ...node.rect }, until: time + FADE_MS });
  }

  // The largest subtrees stay; what is used now stays too.
  prune() {
    if (this.nodes.size <= MAX_NODES * 1.1) return;
    const leaves = [...this.nodes.values()].filter((n) => n.parent && !n.locked);
    const parents = new Set([...this.nodes.values()].map((n) => n.parent));
    const order = leaves.filter((n) => !parents.has(n.id)).sort((a, b) => a.tokens - b.tokens || a.seq - b.seq);
    for (const node of order.slice(0, this.nodes.size - MAX_NODES)) this.nodes.delete(node.id);
  }

  // Children by id of their parent, and the tokens at and below each node.
  family() {
    const children = new Map();
    for (const node of this.nodes.values()) {
      const list = children.get(node.parent);
      if (list) list.push(node);
      else children.set(node.parent, [node]);
    }
    return children;
  }
}

// A pulse that is under way runs to its end, so that many hits are many pulses and not a blink.
function light(node, time) {
  node.hit = time;
  if (time - node.pulse > PULSE_MS) node.pulse = time;
}

function pathTo(picture, node) {
  const path = [];
  for (let at = node; at; at = picture.nodes.get(at.parent)) path.push(at);
  return path.reverse();
}
