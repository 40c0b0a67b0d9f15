// Keys and clicks.

import * as acts from "./acts.js";
import { $, desk, elements, grouped, items, mark, point, show, TABS } from "./desk.js";
import { make } from "./draw.js";

function row() {
  const all = elements();
  if (all.length < 2) return 1;
  const top = all[0].offsetTop;
  const next = all.findIndex((element) => element.offsetTop > top);
  return next < 0 ? all.length : next;
}

function open() {
  const here = items()[desk.cursor];
  if (!here) return;
  if (grouped()) return show(String(here.id));
  $("large-image").src = `large/${here.id}`;
  $("large-text").textContent = here.path;
  $("large").showModal();
}

function markAll() {
  const every = items().every((item) => desk.marked.has(item.id));
  items().forEach((_, n) => mark(n, !every));
  point(desk.cursor, false);
}

function toggle() {
  if (!items().length) return;
  mark(desk.cursor);
  point(desk.cursor + 1);
}

function help() {
  const rows = KEYS.map(([keys, , words]) =>
    make("tr", {}, make("td", {}, ...keys.map((key) => make("kbd", { text: SHOWN[key] || key }))), make("td", { text: words })),
  );
  rows.push(make("tr", {}, make("td", {}, make("kbd", { text: "1…8" })), make("td", { text: "lists, in the order above" })));
  $("keys-table").replaceChildren(...rows);
  $("keys").showModal();
}

const page = (step) => {
  const to = desk.page + step;
  if (desk.held && to >= 0 && to < desk.held.pages) return show(desk.view, to);
};

const SHOWN = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space", Escape: "Esc" };
const KEYS = [
  [["ArrowLeft", "k"], () => point(desk.cursor - 1), "the one before"],
  [["ArrowRight", "j"], () => point(desk.cursor + 1), "the next one"],
  [["ArrowUp"], () => point(desk.cursor - row()), "the row above"],
  [["ArrowDown"], () => point(desk.cursor + row()), "the row below"],
  [["Enter", "o"], open, "open a group; look at an image"],
  [["Escape"], acts.back, "take all marks off; leave a group"],
  [["x", " "], toggle, "mark, or take the mark off (Shift+click: up to here)"],
  [["a"], markAll, "mark all on this page, or none"],
  [["n"], acts.name, "name what is marked, else the group or what is under the cursor; an empty name: none"],
  [["m"], acts.merge, "merge the groups that are marked"],
  [["s"], acts.split, "split: marked images into a group of their own; without marks, the group in two"],
  [["d"], () => acts.move("single"), "drop from the group: to the singles"],
  [["z"], () => acts.move("junk"), "set aside: of no interest"],
  [["g"], acts.regroup, "group again all that nobody named"],
  [["e"], acts.enroll, "enroll: the model takes the named groups in, and is asked of all images again"],
  [["u"], acts.undo, "undo, also an enrolment (Ctrl+Z)"],
  [["r"], acts.redo, "do again what was undone (Ctrl+Shift+Z)"],
  [["w"], () => $("export").click(), "export all decisions as path label lists"],
  [["["], () => page(-1), "the page before"],
  [["]"], () => page(1), "the next page"],
  [["?"], help, "these keys"],
];
const DO = new Map(KEYS.flatMap(([keys, run]) => keys.map((key) => [key, run])));

function onKey(event) {
  if (event.defaultPrevented) return; // Enter that gave a name
  if (event.isComposing || document.querySelector("dialog[open]")) {
    if (document.querySelector("#large[open]") && [" ", "Enter", "o"].includes(event.key)) {
      $("large").close();
      event.preventDefault();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey) {
    if (event.key.toLowerCase() === "z" && !event.altKey) {
      event.preventDefault();
      if (event.shiftKey) acts.redo();
      else acts.undo();
    }
    return;
  }
  if (event.altKey || !desk.status || desk.status.progress.phase !== "ready") return;
  const pressed = event.target.closest("button, a") && (event.key === "Enter" || event.key === " ");
  if (pressed) return; // it is that button's
  const tab = TABS[Number(event.key) - 1];
  const run = tab && /^[1-8]$/.test(event.key) ? () => show(tab[0]) : DO.get(event.key);
  if (!run || (event.repeat && !event.key.startsWith("Arrow") && !"jk".includes(event.key))) return;
  event.preventDefault();
  run();
}

function onClick(event) {
  const element = event.target.closest(".card, .tile");
  if (!element) return;
  const n = elements().indexOf(element);
  if (event.shiftKey) {
    const [low, high] = [Math.min(n, desk.anchor), Math.max(n, desk.anchor)];
    for (let each = low; each <= high; each++) mark(each, true);
  } else if (event.ctrlKey || event.metaKey) mark(n);
  else desk.anchor = n;
  point(n, false);
}

export function listen() {
  document.addEventListener("keydown", onKey);
  $("main").addEventListener("click", onClick);
  $("main").addEventListener("dblclick", (event) => {
    if (event.target.closest(".card, .tile")) open();
  });
  $("tabs").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(button.dataset.tab);
  });
  $("undo").addEventListener("click", acts.undo);
  $("redo").addEventListener("click", acts.redo);
  $("enroll").addEventListener("click", acts.enroll);
  $("help").addEventListener("click", help);
}
