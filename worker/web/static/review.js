// What the page does in the browser: keys, the lease's countdown, undo, the viewer, live updates.
// Every action is a button or a field with data-action; a key presses it. The server renders all content.

const settings = JSON.parse(document.getElementById("settings").textContent);
const byId = (id) => document.getElementById(id);
const find = (action) => document.querySelector(`[data-action="${action}"]`);

class Problem extends Error {
  constructor(reason, detail) {
    super(detail);
    this.reason = reason;
  }
}

// ---- Requests

async function send(method, url, body = {}) {
  let reply;
  try {
    reply = await fetch(url, {
      method,
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Problem("unreachable", "The server cannot be reached. Nothing was changed; try again.");
  }
  const document_ = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Problem(document_.reason ?? "refused", document_.detail ?? `The server answered ${reply.status}.`);
  return document_;
}

async function rendered(url) {
  const reply = await fetch(url, { headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await reply.text(), "text/html");
}

// Replace the content by what the server renders now; nothing else of the page is loaded again.
// Of two that overlap the later one holds.
let refreshes = 0;

async function refresh(url = location.href, { focus = true } = {}) {
  const own = ++refreshes;
  const fresh = await rendered(url);
  if (own !== refreshes) return;
  for (const id of ["main", "counts", "undo"]) {
    const replacement = fresh.getElementById(id);
    if (replacement) byId(id).replaceChildren(...document.adoptNode(replacement).childNodes);
  }
  document.title = fresh.title;
  start();
  if (focus) byId("main").querySelector("h1")?.focus({ preventScroll: true });
}

// ---- Words for people

const say = (text) => (byId("status").textContent = text);

function complain(error) {
  const text = error instanceof Problem ? error.message : "The page failed; load it again.";
  if (!(error instanceof Problem)) console.error(error);
  byId("alert").textContent = text;
  const notice = document.createElement("div");
  notice.className = "notice error";
  const words = document.createElement("span");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Dismiss";
  close.addEventListener("click", () => notice.remove());
  notice.append(words, close);
  byId("notices").querySelectorAll(".error").forEach((old) => old.remove());
  byId("notices").append(notice);
}

const forget = () => byId("notices").querySelectorAll(".error").forEach((notice) => notice.remove());

// ---- The claimed item

const bench = () => document.querySelector(".workbench[data-lease]");
let busy = false;

async function alone(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    complain(error);
  } finally {
    busy = false;
  }
}

function item(path) {
  const { review, lease } = bench().dataset;
  return [`/reviews/${review}/${path}`, { lease }];
}

async function claim() {
  const { status, why } = await send("POST", "/reviews/claim");
  forget();
  await refresh(status === "claimed" ? "/" : `/?why=${why}`);
  say(status === "claimed" ? "A new item. The picture is blurred." : document.querySelector("main h1").textContent);
}

const next = () => (settings.auto_claim ? claim() : refresh("/"));

async function decide(outcome) {
  const [url, body] = item("decide");
  const form = new FormData(byId("decide"));
  await send("POST", url, { ...body, outcome, basis: form.get("basis"), note: form.get("note") });
  await next();
}

async function leave(path, more = {}) {
  const [url, body] = item(path);
  await send("POST", url, { ...body, ...more });
  await (path === "release" ? refresh("/") : next());
}

async function undo(button) {
  await send("POST", `/decisions/${button.dataset.decision}/undo`);
  forget();
  await refresh("/");
  say("Undone. The item is yours again.");
}

// ---- The viewer

const view = { zoom: 0, pointer: null };
const levels = [0, 1, 2, 4, 8];

function pressed(action, on) {
  document.querySelectorAll(`[data-action="${action}"][aria-pressed]`).forEach((b) => b.setAttribute("aria-pressed", on));
}

function reveal() {
  const picture = byId("picture");
  const on = picture.classList.toggle("blurred") === false;
  document.querySelectorAll(".region").forEach((region) => region.classList.toggle("blurred", !on));
  pressed("reveal", on);
  say(on ? "Picture revealed." : "Picture blurred.");
}

function layer(action, selector) {
  const element = document.querySelector(`.overlay ${selector}`);
  if (!element) return;
  const on = element.hasAttribute("hidden");
  element.toggleAttribute("hidden", !on);
  if (action === "heat") document.querySelector(".legend").hidden = !on;
  pressed(action, on);
}

function zoom(level) {
  const stage = byId("stage");
  const picture = byId("picture");
  const { width, height, x, y, overview, native } = picture.dataset;
  const before = picture.getBoundingClientRect();
  const box = stage.getBoundingClientRect();
  // The pixel that stays in the middle: the pointer's, the one in the middle now, or the strongest view's.
  let middle = { x: Number(x), y: Number(y) };
  if (view.pointer) middle = view.pointer;
  else if (view.zoom) {
    middle = {
      x: ((box.left + stage.clientWidth / 2 - before.left) / before.width) * width,
      y: ((box.top + stage.clientHeight / 2 - before.top) / before.height) * height,
    };
  }
  view.zoom = level;
  view.pointer = null;
  const scale = level / devicePixelRatio;
  stage.classList.toggle("native", level > 0);
  picture.style.width = level ? `${width * scale}px` : "";
  picture.style.height = level ? `${height * scale}px` : "";
  const image = picture.querySelector("img");
  const source = level ? native : overview;
  if (image.getAttribute("src") !== source && Math.max(width, height) > settings.overview_side) image.src = source;
  if (level) stage.scrollTo(middle.x * scale - stage.clientWidth / 2, middle.y * scale - stage.clientHeight / 2);
  byId("zoom-state").textContent = level ? `${level * 100} %` : "fit";
  pressed("zoom", level > 0);
}

const step = (by) => zoom(levels[Math.min(levels.length - 1, Math.max(0, levels.indexOf(view.zoom) + by))]);

function startViewer() {
  const stage = byId("stage");
  view.zoom = 0;
  view.pointer = null;
  if (!stage) return;
  const picture = byId("picture");
  picture.querySelector("img").addEventListener("error", () =>
    complain(new Problem("picture", "The picture cannot be shown. Load the page again to see why.")),
  );
  stage.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const { width, height } = picture.dataset;
    // In the fitted picture the image is centred in its box.
    const scale = view.zoom ? box.width / width : Math.min(box.width / width, box.height / height);
    const left = box.left + (box.width - width * scale) / 2;
    const top = box.top + (box.height - height * scale) / 2;
    const at = { x: (event.clientX - left) / scale, y: (event.clientY - top) / scale };
    view.pointer = at.x >= 0 && at.y >= 0 && at.x <= width && at.y <= height ? at : null;
    if (event.buttons === 1 && view.zoom) stage.scrollBy(-event.movementX, -event.movementY);
  });
  stage.addEventListener("pointerleave", () => (view.pointer = null));
}

// ---- Clocks: the lease, the time to undo, breaks

let ends = 0;
let undoEnds = 0;
let touched = Date.now();
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function startClocks() {
  ends = bench() ? performance.now() + 1000 * bench().dataset.remaining : 0;
  const waiting = document.querySelector("[data-undo-seconds]");
  undoEnds = waiting ? performance.now() + 1000 * waiting.dataset.undoSeconds : 0;
  tick();
}

async function renew() {
  const [url, body] = item("renew");
  const { review } = bench().dataset;
  try {
    const { remaining_seconds: remaining } = await send("POST", url, body);
    if (bench()?.dataset.review === review) ends = performance.now() + 1000 * remaining;
  } catch (error) {
    if (error.reason !== "unreachable") complain(error);
  }
}

let renewed = 0;

function tick() {
  const now = performance.now();
  const held = bench();
  if (held) {
    const left = Math.max(0, (ends - now) / 1000);
    const full = Number(held.dataset.leaseSeconds);
    byId("countdown").textContent = clock(left);
    held.querySelector(".lease").classList.toggle("ending", left < full / 5);
    if (!left && !held.dataset.ended) {
      held.dataset.ended = "yes";
      held.querySelector(".lease span").textContent = "claim ended";
      held.querySelector(".lease button").hidden = false;
      byId("alert").textContent = "Your claim has ended; the item went back to the queue.";
    }
    const here = document.visibilityState === "visible" && Date.now() - touched < 1000 * settings.idle_seconds;
    if (left && here && left < (full * 2) / 3 && now - renewed > 5000 && !busy) {
      renewed = now;
      renew();
    }
  }
  const waiting = document.querySelector("[data-undo-seconds]");
  if (waiting) {
    const left = Math.ceil((undoEnds - now) / 1000);
    if (left <= 0) waiting.remove();
    else waiting.querySelector("[data-undo-remaining]").textContent = `${left} s to undo`;
  }
}
setInterval(tick, 500);

for (const kind of ["pointerdown", "keydown", "pointermove"]) {
  addEventListener(kind, () => (touched = Date.now()), { passive: true });
}

// A pause of five minutes is a break; a longer stretch of work than the preference asks for one.
const PAUSE = 5 * 60_000;
setInterval(() => {
  if (!settings.break_minutes) return;
  const now = Date.now();
  const work = JSON.parse(localStorage.getItem("work") ?? "{}");
  if (!work.last || now - Math.max(work.last, touched) > PAUSE) Object.assign(work, { since: now });
  const active = now - touched < 60_000;
  if (active) work.last = now;
  localStorage.setItem("work", JSON.stringify(work));
  if (active && now - work.since > settings.break_minutes * 60_000 && !byId("break")) {
    const notice = document.createElement("div");
    notice.className = "notice";
    notice.id = "break";
    const words = document.createElement("span");
    words.textContent = `You have worked for ${Math.round((now - work.since) / 60_000)} minutes. Look away for a while.`;
    const later = document.createElement("button");
    later.type = "button";
    later.textContent = "Later";
    later.addEventListener("click", () => {
      localStorage.setItem("work", JSON.stringify({ since: Date.now() - (settings.break_minutes - 10) * 60_000, last: Date.now() }));
      notice.remove();
    });
    notice.append(words, later);
    byId("notices").append(notice);
    say(words.textContent);
  }
}, 10_000);

// ---- Actions

const press = (name) => () => (byId("decide").elements.basis.value = name);
const actions = {
  claim: () => alone(claim),
  reveal,
  outline: () => layer("outline", ".outline"),
  feature: () => layer("feature", ".in-place"),
  heat: () => layer("heat", ".heat"),
  zoom: () => zoom(view.zoom ? 0 : 1),
  zoom_in: () => step(1),
  zoom_out: () => step(-1),
  generated: () => alone(() => decide("generated")),
  real: () => alone(() => decide("real")),
  edited: () => alone(() => decide("edited")),
  cannot_tell: () => alone(() => decide("cannot_tell")),
  opinion: press("opinion"),
  source_found: press("source_found"),
  uploader_said: press("uploader_said"),
  credentials: press("credentials"),
  note: () => byId("note").focus(),
  skip: () => alone(() => leave("skip")),
  escalate: () => alone(() => leave("escalate", { note: byId("note").value })),
  release: () => alone(() => leave("release")),
  close: () => alone(() => leave("close")),
  undo: (button) => alone(() => undo(button)),
  claim_this: (button) => alone(async () => {
    await send("POST", "/reviews/claim", { review: button.dataset.review });
    location.assign("/");
  }),
  help: () => byId("help").showModal(),
  close_help: () => byId("help").close(),
  save_preferences: () => alone(savePreferences),
  endpoint_add: () => alone(addEndpoint),
  endpoint_state: (button) => alone(() => changeEndpoint("PATCH", button, "", { active: button.dataset.active === "true" })),
  endpoint_rotate: (button) => alone(() => changeEndpoint("POST", button, "/rotate")),
  endpoint_delete: (button) => alone(async () => {
    if (confirm(`Remove ${button.dataset.url} with its deliveries?`)) await changeEndpoint("DELETE", button, "");
  }),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button && !button.disabled) actions[button.dataset.action]?.(button);
});

const typing = (element) => element.closest?.("textarea, select, input:not([type=radio], [type=checkbox])");

document.addEventListener("keydown", (event) => {
  if (event.target.id === "note" && event.key === "Escape") return event.target.blur();
  if (!settings.keys_on || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (typing(event.target) || document.querySelector("dialog[open]")) return;
  const name = settings.keys[event.key.toLowerCase()];
  const element = name && find(name);
  if (!element || element.disabled || element.hidden) return;
  event.preventDefault();
  actions[name](element);
});

// ---- Preferences

async function savePreferences() {
  const form = byId("preferences");
  const keys = {};
  form.querySelectorAll("input[data-key]").forEach((input) => (keys[input.dataset.key] = input.value));
  await send("PUT", "/preferences", {
    keys_on: form.elements.keys_on.checked,
    auto_claim: form.elements.auto_claim.checked,
    break_minutes: Number(form.elements.break_minutes.value),
    keys,
  });
  location.reload();
}

// ---- Endpoints of webhooks

async function changeEndpoint(method, button, path, body = {}) {
  const { secret } = await send(method, `/v1/webhooks/${button.dataset.endpoint}${path}`, body);
  await refresh();
  tellSecret(secret);
}

async function addEndpoint() {
  const form = new FormData(byId("endpoint"));
  const { secret } = await send("POST", "/v1/webhooks", {
    url: form.get("url"),
    description: form.get("description"),
    event_types: form.getAll("event_types"),
  });
  forget();
  await refresh();
  tellSecret(secret);
}

function tellSecret(secret) {
  if (!secret) return;
  const banner = byId("secret");
  banner.querySelector("p").textContent = secret;
  banner.hidden = false;
}

// ---- Live updates

function connect() {
  const item = document.querySelector(".workbench:not([data-lease])")?.dataset.review;
  const which = item ?? (document.querySelector("tr[data-review]") ? "all" : "none");
  const source = new EventSource(`/live?review=${which}`);
  const state = byId("link-state");
  const tell = (on) => {
    state.classList.toggle("live", on);
    state.title = on ? "Live updates are on" : "Live updates are off";
    state.setAttribute("aria-label", state.title);
  };
  source.addEventListener("open", () => {
    tell(true);
    // What changed before the connection was there was not told.
    if (resting()) soon(refreshRest);
  });
  source.addEventListener("error", () => tell(false));
  source.addEventListener("counts", (event) => {
    byId("counts").innerHTML = JSON.parse(event.data).html;
    if (resting()) soon(refreshRest);
  });
  source.addEventListener("review", (event) => {
    const change = JSON.parse(event.data);
    const shown = document.querySelector(`[data-review="${change.review}"]`);
    if (!shown || shown.dataset.lease) return;
    soon(shown.matches("tr") ? refreshRows : refreshItem);
  });
  source.addEventListener("missed", () => {
    if (document.querySelector("tr[data-review]")) soon(refreshRows);
    else if (document.querySelector(".workbench:not([data-lease])")) soon(refreshItem);
    else if (resting()) soon(refreshRest);
  });
  addEventListener("pagehide", () => source.close());
}

// Once for all changes of a moment, and not for all open pages at the same one.
let timer = 0;
function soon(work) {
  timer ||= setTimeout(() => {
    timer = 0;
    Promise.resolve(work()).catch(() => {});
  }, 200 + 600 * Math.random());
}

const resting = () => document.querySelector("[data-rest]:not([data-rest=reader])");

// Meanwhile an item may have been claimed, and its picture revealed.
const refreshRest = () => resting() && !busy && refresh("/", { focus: false });

// Of an item that is only read, the picture stays as it is looked at.
async function refreshItem() {
  const fresh = await rendered(location.href);
  const layers = (page) => page.querySelectorAll(".overlay > *").length;
  if (layers(fresh) !== layers(document)) return refresh(location.href, { focus: false });
  for (const part of [".lease", ".panel"]) {
    document.querySelector(part).replaceWith(document.adoptNode(fresh.querySelector(part)));
  }
  const blurred = byId("picture")?.classList.contains("blurred");
  document.querySelectorAll(".region").forEach((region) => region.classList.toggle("blurred", blurred));
}

// Only rows that are shown change, so that nothing moves under the pointer.
async function refreshRows() {
  const fresh = await rendered(location.href);
  document.querySelectorAll("tr[data-review]").forEach((row) => {
    const replacement = fresh.querySelector(`tr[data-review="${row.dataset.review}"]`);
    if (replacement) row.replaceWith(document.adoptNode(replacement));
    else row.classList.add("gone");
  });
}

// ---- Start

function start() {
  startViewer();
  startClocks();
}

start();
connect();
