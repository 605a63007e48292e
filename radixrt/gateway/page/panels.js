// Everything beside the tree: rates, tiers, requests, and the facts of a node. Text from outside only
// ever becomes text nodes.

const SOURCES = ["device", "host", "disk", "coalesced", "computed", "generated", "forced"];
const HISTORY_S = 60, RATE_S = 3;

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function short(n) {
  if (!Number.isFinite(n)) return "–";
  const [unit, name] = n >= 999.5e6 ? [1e9, "G"] : n >= 999.5e3 ? [1e6, "M"] : n >= 10e3 ? [1e3, "k"] : [1, ""];
  const value = n / unit;
  return (name && value < 100 ? value.toFixed(1) : String(Math.round(value))) + name;
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(share >= 0.9995 || share < 0.1 ? 0 : 1)}%` : "–");

function ago(seconds) {
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${(seconds / 3600).toFixed(1)} h ago`;
}

// Rates over the last minute from totals that only grow.
class Rates {
  constructor() {
    this.samples = [];
  }

  take(answer) {
    const t = answer.totals;
    const prompt = t.device + t.host + t.disk + t.coalesced + t.computed;
    const sample = { at: answer.now, generated: t.sampled + t.forced, prompt, cached: prompt - t.computed, running: answer.num_running };
    const last = this.samples.at(-1);
    if (last && (sample.at < last.at || sample.prompt < last.prompt)) this.samples = [];
    this.samples.push(sample);
    while (this.samples[0].at < sample.at - HISTORY_S) this.samples.shift();
  }

  over(seconds) {
    const now = this.samples.at(-1);
    const then = this.samples.find((s) => s.at >= now.at - seconds) ?? now;
    const span = Math.max(0.2, now.at - then.at);
    const prompt = now.prompt - then.prompt;
    return { generated: (now.generated - then.generated) / span, prompt: prompt / span, hit: prompt ? (now.cached - then.cached) / prompt : NaN };
  }

  // One value a second, the newest last.
  series(name) {
    const now = this.samples.at(-1)?.at ?? 0;
    const values = Array(HISTORY_S).fill(0);
    const sums = Array(HISTORY_S).fill(0);
    for (let i = 1; i < this.samples.length; i++) {
      const [a, b] = [this.samples[i - 1], this.samples[i]];
      const slot = HISTORY_S - 1 - Math.floor(now - b.at);
      if (slot < 0) continue;
      if (name === "running") values[slot] = Math.max(values[slot], b.running);
      else if (name === "hit") {
        values[slot] += b.cached - a.cached;
        sums[slot] += b.prompt - a.prompt;
      } else values[slot] += b[name] - a[name];
    }
    if (name !== "hit") return values;
    let held = 0;
    return values.map((value, i) => (sums[i] ? (held = value / sums[i]) : held));
  }
}

function sparkline(canvas, values, colour, top) {
  const ratio = devicePixelRatio || 1;
  const { clientWidth: w, clientHeight: h } = canvas;
  canvas.width = w * ratio;
  canvas.height = h * ratio;
  const c = canvas.getContext("2d");
  c.scale(ratio, ratio);
  const most = top ?? Math.max(1, ...values);
  const x = (i) => (i / (values.length - 1)) * w;
  const y = (v) => h - 1.5 - (Math.min(v, most) / most) * (h - 4);
  c.beginPath();
  values.forEach((v, i) => (i ? c.lineTo(x(i), y(v)) : c.moveTo(x(i), y(v))));
  c.strokeStyle = c.fillStyle = colour;
  c.lineWidth = 1.4;
  c.stroke();
  c.lineTo(w, h);
  c.lineTo(0, h);
  c.globalAlpha = 0.14;
  c.fill();
}

function showRates(rates, answer, colour) {
  const recent = rates.over(RATE_S), longer = rates.over(HISTORY_S);
  $("rate-generated").textContent = short(recent.generated);
  $("rate-prompt").textContent = short(recent.prompt);
  $("rate-hit").textContent = percent(Number.isFinite(recent.hit) ? recent.hit : longer.hit);
  const t = answer.totals;
  const all = t.device + t.host + t.disk + t.coalesced + t.computed;
  $("rate-hit-all").textContent = all ? `${percent((all - t.computed) / all)} in all` : "";
  $("num-running").textContent = short(answer.num_running);
  $("num-waiting").textContent = short(answer.num_waiting);
  sparkline($("spark-generated"), rates.series("generated"), colour("generated"));
  sparkline($("spark-prompt"), rates.series("prompt"), colour("coalesced"));
  sparkline($("spark-hit"), rates.series("hit"), colour("device"), 1);
  sparkline($("spark-running"), rates.series("running"), colour("host"));
  $("clients").textContent = answer.num_clients === 1 ? "1 client" : `${answer.num_clients} clients`;
}

function showTiers(tiers, colour) {
  const rows = tiers.map((tier) => {
    const most = tier.capacity || Math.max(1, tier.tokens + tier.running);
    const part = (tokens, paint) => {
      const bar = make("i");
      bar.style.width = `${Math.min(100, (100 * tokens) / most)}%`;
      bar.style.background = paint;
      return bar;
    };
    const own = colour(tier.name in { device: 1, host: 1 } ? tier.name : "disk");
    const meter = make("div", { className: "meter" },
      part(tier.locked, own), part(Math.max(0, tier.tokens - tier.locked), `color-mix(in srgb, ${own} 62%, transparent)`), part(tier.running, colour("generated")));
    meter.title = `${tier.tokens} tokens cached, ${tier.locked} of them in use; ${tier.running} being written`;
    const told = tier.capacity ? `${short(tier.tokens + tier.running)} / ${short(tier.capacity)}` : short(tier.tokens);
    return make("div", { className: "tier" }, make("span", { textContent: tier.name }), meter, make("span", { className: "muted", textContent: told }));
  });
  $("tiers").replaceChildren(...rows);
}

function requestRow(request, isOver) {
  const total = request.prompt + request.generated + request.forced;
  const named = SOURCES.filter((source) => request[source] > 0);
  const split = make("div", { className: "split" });
  const scale = 100 / Math.max(1, total);
  for (const source of named) {
    const bar = make("i", { className: source, title: `${request[source]} ${source}` });
    bar.style.width = `${request[source] * scale}%`;
    split.append(bar);
  }
  split.title = named.map((source) => `${source} ${request[source]}`).join(" · ");
  const served = request.device + request.host + request.disk + request.coalesced;
  const state = isOver ? "" : ` · ${request.state}`;
  const who = make("span", { className: "who" },
    make("span", { className: `dot ${isOver ? "" : request.state}` }),
    make("b", { textContent: request.op }), ` ${request.client} #${request.branch}${state}`);
  const num = make("span", { className: "num", textContent: `${served}/${request.prompt} hit · ${request.generated + request.forced} out` });
  return make("li", { className: isOver ? "over" : "" }, who, num, split);
}

function showRequests(running, ended) {
  const live = running.slice(0, 40).map((request) => requestRow(request, false));
  const over = [...ended].reverse().slice(0, Math.max(8, 40 - live.length)).map((request) => requestRow(request, true));
  if (!live.length && !over.length) live.push(make("li", { className: "none", textContent: "No requests yet" }));
  $("rows").replaceChildren(...live, ...over);
}

function showFacts(node, picture) {
  const facts = [
    ["tokens", node.tokens], ["with all below", node.below ?? node.tokens],
    ["device", node.tier === "device" ? node.tokens : 0], ["host", node.host],
    ["disk", node.disk], ["uses", node.uses ? (node.uses >= 255 ? "255 or more" : node.uses) : "–"],
    ["last used", ago(Math.max(0, node.idle ?? 0))], ["continued by", node.children],
    ["leases", node.leases], ["in use", node.locked ? "yes" : "no"],
    ["kept", node.kept_until > picture.now ? `${Math.round(node.kept_until - picture.now)} s` : "no"], ["programs", node.ended ? "ended" : "open"],
  ];
  const top = pathTo(picture, node)[0];
  if (top?.namespace) facts.push(["namespace", top.namespace]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  $("node-id").textContent = `#${Math.abs(node.id)}`;
}

function showPrefix(told, id) {
  const box = $("prefix");
  if (!told?.path) {
    box.replaceChildren(make("em", { textContent: "This run has left the tree." }));
    $("prefix-title").textContent = "Prefix";
    return;
  }
  const total = told.path.reduce((sum, run) => sum + run.tokens, 0);
  $("prefix-title").textContent = `Prefix, ${total} tokens`;
  if (told.path.every((run) => run.text == null)) {
    box.replaceChildren(make("em", { textContent: "Texts are not shown here." }));
    return;
  }
  const own = (run) => run.id === id;
  box.replaceChildren(...told.path.map((run) => make("span", { className: own(run) ? "own" : "", textContent: run.text ?? "" })));
  box.querySelector(".own")?.scrollIntoView({ block: "nearest" });
}
