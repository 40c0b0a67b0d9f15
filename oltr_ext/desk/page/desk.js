// What is shown, and where the person is in it. The server has the state; this asks for a page of
// it, and again whenever its stamp is another one.

import { get, Refusal } from "./api.js";
import { card, count, head, history, make, table, tile } from "./draw.js";
import { listen } from "./keys.js";

export const TABS = [
  ["open", "Groups"],
  ["named", "Named"],
  ["single", "Singles"],
  ["known", "Known"],
  ["changed", "Changes"],
  ["junk", "Set aside"],
  ["bad", "Broken"],
  ["history", "History"],
];
const EMPTY = {
  open: "No group waits for a name.",
  named: "Nothing has a name yet: n gives a group one.",
  single: "No unknown image is alone.",
  known: "No image is recognised.",
  changed: "No answer has changed.",
  junk: "Nothing is set aside.",
  bad: "Every image could be read.",
};
const SOON = 1000;
const LATER = 5000; // in a tab that nobody looks at

export const desk = {
  view: "open", // a tab, or a group as its number
  from: "open", // the tab that a group was opened from
  page: 0,
  held: null, // the page as it came
  status: null,
  cursor: 0,
  marked: new Set(),
  anchor: 0,
};

export const $ = (id) => document.getElementById(id);

export function say(words, bad = false) {
  $("said").hidden = !words;
  $("said").textContent = words;
  $("said").classList.toggle("bad", bad);
}

export const grouped = () => desk.view === "open" || desk.view === "named";
export const inGroup = () => /^\d+$/.test(desk.view);
export const items = () => (desk.held && (desk.held.groups || desk.held.images)) || [];
export const version = () => (desk.held && desk.held.version !== undefined ? desk.held.version : desk.status.version);

// What a decision is about: what is marked, else what is under the cursor.
export function chosen() {
  if (desk.marked.size) return [...desk.marked];
  const here = items()[desk.cursor];
  return here ? [here.id] : [];
}

export async function show(view, page = 0) {
  if (!/^\d+$/.test(view)) desk.from = view;
  Object.assign(desk, { view, page, cursor: 0, anchor: 0, held: null });
  desk.marked.clear();
  await load();
  $("main").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

let loading = 0;

export async function load() {
  const mine = ++loading;
  const { view, page } = desk;
  let path = `api/images/${view}?page=${page}`;
  if (view === "open" || view === "named") path = `api/groups/${view}?page=${page}`;
  if (view === "history") path = `api/history?page=${page}`;
  try {
    const held = await get(path);
    if (mine !== loading) return;
    if (page >= held.pages) return await show(view, held.pages - 1);
    take(held);
  } catch (error) {
    if (!(error instanceof Refusal) || mine !== loading) throw error;
    if (/^\d+$/.test(view) && error.status === 400) return await show(desk.from); // it has gone
    say(error.message, true);
  }
}

function take(held) {
  const before = items()[desk.cursor];
  desk.held = held;
  const now = items();
  const there = new Set(now.map((item) => item.id));
  desk.marked = new Set([...desk.marked].filter((id) => there.has(id)));
  const same = before ? now.findIndex((item) => item.id === before.id) : -1;
  desk.cursor = Math.max(0, same >= 0 ? same : Math.min(desk.cursor, now.length - 1));
  draw();
}

export function draw() {
  drawStatus();
  const { held, view } = desk;
  if (!held) return $("main").replaceChildren();
  let body;
  if (view === "history") body = history(held.events);
  else if (view === "bad") body = table(held.bad.map((row) => [row.path, row.why]));
  else if (grouped()) body = make("div", { kind: "cards" }, ...held.groups.map(card));
  else body = make("div", { kind: "tiles" }, ...held.images.map(tile));
  const parts = [body];
  if (held.group) parts.unshift(head(held.group));
  if (held.total === 0) parts.push(make("p", { kind: "empty", text: EMPTY[view] || "Nothing here." }));
  $("main").replaceChildren(...parts);
  point(desk.cursor, false);
}

export const elements = () => [...document.querySelectorAll("main .card, main .tile")];

export function point(to, scroll = true) {
  const all = elements();
  if (!all.length) return drawFoot();
  desk.cursor = Math.max(0, Math.min(to, all.length - 1));
  all.forEach((element, n) => {
    element.classList.toggle("here", n === desk.cursor);
    element.classList.toggle("marked", desk.marked.has(items()[n].id));
  });
  if (scroll) all[desk.cursor].scrollIntoView({ block: "nearest" });
  drawFoot();
}

export function mark(n, to = !desk.marked.has(items()[n].id)) {
  const { id } = items()[n];
  if (to) desk.marked.add(id);
  else desk.marked.delete(id);
  desk.anchor = n;
}

function drawFoot() {
  const { held, marked } = desk;
  $("marked").textContent = marked.size ? `${marked.size} marked` : "";
  $("pages").textContent = held ? `page ${desk.page + 1} of ${held.pages}` : "";
}

function drawStatus() {
  const { status } = desk;
  if (!status) return;
  const { progress, counts } = status;
  document.title = `desk: ${status.run}`;
  $("trouble").hidden = !status.trouble && progress.phase !== "failed";
  $("trouble").textContent = progress.phase === "failed" ? `failed: ${progress.words}` : status.trouble;
  $("progress").hidden = progress.phase === "ready" || progress.phase === "failed";
  if (progress.phase !== "ready") {
    const of = progress.total ? ` of ${progress.total.toLocaleString("en")}` : "";
    $("phase").textContent = `${progress.phase}: ${progress.done.toLocaleString("en")}${of} images`;
    if (progress.total) $("bar").max = progress.total;
    if (progress.total) $("bar").value = progress.done;
    else $("bar").removeAttribute("value");
    return;
  }
  const known = counts.images - counts.unknown;
  $("where").textContent =
    `${status.run}, ${status.folder.split(/[\\/]/).pop()}: ${count(counts.images, "image")}, ${counts.unknown} unknown, ` +
    `${known} recognised, ${count(counts.classes, "class")}`;
  $("where").title = status.folder;
  const current = inGroup() ? desk.from : desk.view;
  $("tabs").replaceChildren(
    ...TABS.map(([name, text], n) => {
      const number = counts[name] === undefined ? "" : ` ${counts[name].toLocaleString("en")}`;
      const button = make("button", { text: `${text}${number}`, data: { tab: name }, title: `${n + 1}` });
      if (name === current) button.setAttribute("aria-current", "page");
      return button;
    }),
  );
  for (const back of ["undo", "redo"]) {
    $(back).disabled = status[back] === null;
    $(back).title = status[back] || "nothing";
  }
  const waits = status.plan.length;
  $("enroll").disabled = waits === 0;
  $("enroll").textContent = waits ? `Enroll ${count(waits, "class")}` : "Enroll";
  $("enroll").title = status.plan.map(([name, n]) => `${name}: ${n < 0 ? "goes" : n}`).join(", ");
}

let stamp = null;
let drawn = Promise.resolve();

export async function poll() {
  const status = await get("api/status");
  const ready = status.progress.phase === "ready";
  const other = stamp !== status.stamp;
  const first = ready && (!desk.status || desk.status.progress.phase !== "ready");
  desk.status = status;
  stamp = status.stamp;
  if (ready && (other || first)) drawn = load();
  else if (!ready) drawStatus();
  await drawn; // also if another call began it
}

async function watch() {
  try {
    await poll();
    if ($("said").dataset.lost) {
      delete $("said").dataset.lost;
      say("");
    }
  } catch (error) {
    say(error.message, true);
    $("said").dataset.lost = "yes";
  }
  setTimeout(watch, document.hidden ? LATER : SOON);
}

listen();
watch();
