// The dialog that asks for a name, with the names that there are.

import { get } from "./api.js";
import { make } from "./draw.js";

const $ = (id) => document.getElementById(id);
let offered = [];
let at = -1;
let near = [];
let turn = 0;

function draw() {
  $("names").replaceChildren(
    ...offered.map((each, n) =>
      make(
        "li",
        { role: "option", id: `name-${n}`, "aria-selected": String(n === at), data: { n } },
        make("span", { text: each.name }),
        make("span", { kind: "origin", text: each.origin }),
      ),
    ),
  );
  if (at >= 0) {
    $("name").setAttribute("aria-activedescendant", `name-${at}`);
    $("names").children[at].scrollIntoView({ block: "nearest" });
  } else $("name").removeAttribute("aria-activedescendant");
}

async function offer() {
  const mine = ++turn;
  const typed = $("name").value.trim();
  const found = await get(`api/names?q=${encodeURIComponent(typed)}`).catch(() => []);
  if (mine !== turn) return;
  const first = typed ? [] : near.map((name) => ({ name, origin: "near" }));
  const there = new Set(first.map((each) => each.name));
  offered = [...first, ...found.filter((each) => !there.has(each.name))];
  at = -1;
  draw();
}

// The name that was given, "" for none, or null where the dialog was left.
export function ask(words, value, suggested) {
  const dialog = $("naming");
  near = suggested;
  offered = [];
  at = -1;
  $("naming-what").textContent = words;
  $("name").value = value;
  draw();
  offer();
  dialog.returnValue = "";
  dialog.showModal();
  $("name").select();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => resolve(dialog.returnValue === "given" ? $("name").value.trim() : null),
      { once: true },
    );
  });
}

function give() {
  if (at >= 0) $("name").value = offered[at].name;
  $("naming").close("given");
}

$("name").addEventListener("input", offer);
$("name").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && offered.length) {
    at = Math.max(-1, Math.min(at + step, offered.length - 1));
    draw();
    event.preventDefault();
  } else if (event.key === "Tab" && offered.length) {
    $("name").value = offered[Math.max(at, 0)].name;
    offer();
    event.preventDefault();
  } else if (event.key === "Enter") {
    event.preventDefault();
    give();
  }
});
$("names").addEventListener("click", (event) => {
  const row = event.target.closest("li");
  if (!row) return;
  at = Number(row.dataset.n);
  give();
});
