// The page: asks the gateway for what changed, four times a second, and shows it.

const EVERY_MS = 250, HIDDEN_MS = 2500, TIMEOUT_MS = 6000, KEY = "radixrt-admin-key";

const picture = new Picture();
const rates = new Rates();
const tree = new TreeCanvas($("canvas"), picture);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
let isPaused = false, failures = 0, timer = 0, lastTier = "";

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const answer = await fetch(path, {
    headers: key ? { authorization: `Bearer ${key}` } : {}, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.error?.message ?? answer.statusText);
}

async function follow() {
  clearTimeout(timer);
  let wait = document.hidden ? HIDDEN_MS : EVERY_MS;
  try {
    const answer = await ask(`page/tree?since=${picture.generation}&max_nodes=${MAX_NODES}`);
    failures = 0;
    show(answer);
    if (answer.is_more) wait = 30;
  } catch (error) {
    if (error.status === 401 || error.status === 403) return logIn(error.status === 403 || sessionStorage.getItem(KEY) ? error.message : "");
    failures++;
    wait = Math.min(5000, 400 * failures);
    lost(error);
  }
  if (!isPaused) timer = setTimeout(follow, wait);
}

function show(answer) {
  const hasChanged = picture.take(answer, performance.now());
  rates.take(answer);
  tree.isDim = false;
  $("lost").hidden = true;
  $("model").textContent = answer.model;
  document.title = `radixrt · ${answer.model}`;
  state("live", isPaused ? "paused" : "live");
  showRates(rates, answer, colour);
  const tiers = JSON.stringify(answer.tiers);
  if (tiers !== lastTier) showTiers(answer.tiers, colour);
  lastTier = tiers;
  showRequests(answer.requests, answer.ended);
  let tokens = 0, runs = 0;
  for (const node of picture.nodes.values()) {
    tokens += node.tokens;
    runs += node.tokens > 0;
  }
  $("tree-size").textContent = runs ? `${runs} runs · ${short(tokens)} tokens` : "";
  $("empty").hidden = runs > 0;
  const chosen = picture.nodes.get(tree.selected);
  if (chosen) showFacts(chosen, picture);
  if (hasChanged) {
    crumbs();
    tree.changed();
  }
}

function state(kind, text) {
  $("state").className = `state ${kind}`;
  $("state").lastElementChild.textContent = text;
}

function lost(error) {
  const waits = error.status === 503;
  state("lost", waits ? "not ready" : "connection lost");
  if (failures < 2 && !waits) return;
  $("lost").className = waits ? "banner waits" : "banner";
  $("lost").textContent = waits ? error.message : "The connection to the gateway is lost; trying again…";
  $("lost").hidden = false;
  tree.isDim = true;
  tree.wake();
}

function logIn(message) {
  state("lost", "locked");
  $("login-error").textContent = message;
  $("login-error").hidden = !message;
  if (!$("login").open) $("login").showModal();
}

$("login").addEventListener("cancel", (event) => event.preventDefault());
$("login").querySelector("form").addEventListener("submit", () => {
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  follow();
});

async function select(id) {
  tree.selected = id;
  tree.wake();
  const node = picture.nodes.get(id);
  $("node").hidden = !node;
  if (!node) return;
  showFacts(node, picture);
  $("prefix").replaceChildren(make("em", { textContent: "…" }));
  try {
    const told = await ask(`page/node/${id}`);
    if (tree.selected === id) showPrefix(told, id);
  } catch (error) {
    $("prefix").replaceChildren(make("em", { textContent: error.message }));
  }
}

function zoomTo(id) {
  tree.zoom = id || null;
  crumbs();
  tree.changed();
}

function crumbs() {
  const node = picture.nodes.get(tree.zoom);
  const path = node ? pathTo(picture, node) : [];
  const named = (one) => (one.parent ? shownText(one.text?.trim() || `${one.tokens} tokens`) : one.namespace || "all");
  $("crumbs").replaceChildren(...path.map((one, i) => make("button", { type: "button", textContent: named(one), onclick: () => zoomTo(i ? one.id : null) })));
}

const canvas = $("canvas");
canvas.addEventListener("mousemove", (event) => {
  const node = tree.at(event.offsetX, event.offsetY);
  canvas.style.cursor = node ? "pointer" : "default";
  if (tree.hovered !== (node?.id ?? 0)) {
    tree.hovered = node?.id ?? 0;
    tree.wake();
  }
  const hint = $("hint");
  hint.hidden = !node;
  if (!node) return;
  const tiers = [node.tier, node.tier === "device" && node.host ? "host" : "", node.disk ? "disk" : ""].filter(Boolean).join(" + ");
  hint.replaceChildren(`${node.tokens} tokens · ${tiers} · used ${ago(Math.max(0, node.idle))}`);
  if (node.text) hint.append(make("code", { textContent: node.text.length > 160 ? node.text.slice(0, 160) + "…" : node.text }));
  const isRight = event.offsetX > canvas.clientWidth * 0.6, isLow = event.offsetY > canvas.clientHeight * 0.7;
  hint.style.left = isRight ? "auto" : `${event.offsetX + 14}px`;
  hint.style.right = isRight ? `${canvas.clientWidth - event.offsetX + 10}px` : "auto";
  hint.style.top = isLow ? "auto" : `${event.offsetY + 16}px`;
  hint.style.bottom = isLow ? `${canvas.clientHeight - event.offsetY + 10}px` : "auto";
});
canvas.addEventListener("mouseleave", () => {
  tree.hovered = 0;
  $("hint").hidden = true;
  tree.wake();
});
canvas.addEventListener("click", (event) => select(tree.at(event.offsetX, event.offsetY)?.id ?? 0));
canvas.addEventListener("dblclick", (event) => zoomTo(tree.at(event.offsetX, event.offsetY)?.id ?? null));
$("node-close").onclick = () => select(0);
$("node-zoom").onclick = () => zoomTo(tree.selected);
$("copy").onclick = () => navigator.clipboard?.writeText($("prefix").textContent);
$("pause").onclick = pause;
document.addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLInputElement || event.target instanceof HTMLButtonElement) return;
  if (event.key === "Escape") tree.selected ? select(0) : zoomTo(null);
  if (event.key === " ") {
    event.preventDefault();
    pause();
  }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && !isPaused) follow(); });

function pause() {
  isPaused = !isPaused;
  $("pause").textContent = isPaused ? "Follow" : "Pause";
  state("live", isPaused ? "paused" : "live");
  isPaused ? clearTimeout(timer) : follow();
}

setInterval(() => tree.changed(), 4000); // what is not used cools down

// For the curious, and for the tests: where a node is drawn, and what is known of it.
window.radixrt = { picture, tree, select, zoomTo };

follow();
