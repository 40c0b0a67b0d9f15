// Elements of the page. Names and paths are text wherever they go: textContent and nothing else.

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  const { text, kind, data, ...rest } = options;
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  for (const [key, value] of Object.entries(data || {})) element.dataset[key] = value;
  for (const [key, value] of Object.entries(rest)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const count = (n, one, many = one + (one.endsWith("s") ? "es" : "s")) =>
  `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

function picture(image) {
  const element = make("img", { src: `small/${image}`, alt: "", loading: "lazy", draggable: "false" });
  element.addEventListener("error", () => {
    element.classList.add("gone");
    element.alt = "cannot be shown";
  });
  return element;
}

function about(group) {
  const lines = [];
  if (group.name === null) {
    const near = group.nearest.map(([name, distance]) => `${name} ${distance.toFixed(2)}`);
    lines.push(make("p", { text: `near: ${near.join(", ")}` }));
  } else if (group.trained) {
    lines.push(make("p", { kind: "badge", text: "a trained class: these are for training" }));
  } else {
    const waits = group.size - group.enrolled;
    const text = waits === 0 ? "enrolled" : `${group.enrolled} enrolled, ${waits} to enroll`;
    lines.push(make("p", { kind: "badge", text }));
  }
  if (group.answers.length) {
    const taken = group.answers.map(([name, n]) => `${n} as ${name}`);
    lines.push(make("p", { text: `recognised now: ${taken.join(", ")}` }));
  }
  return lines;
}

export function card(group) {
  return make(
    "article",
    { kind: "card", data: { group: group.id }, "aria-label": group.name || `group ${group.id}` },
    make("h2", { text: group.name === null ? `group ${group.id}` : group.name }),
    make("p", { text: `${count(group.size, "image")}, sure ${group.sure.toFixed(2)}` }),
    make("div", { kind: "sheet" }, ...group.images.map(picture)),
    ...about(group),
  );
}

export function head(group) {
  return make(
    "div",
    { kind: "head" },
    make("h2", { text: group.name === null ? `group ${group.id}` : group.name }),
    make("p", { text: `${count(group.size, "image")}, sure ${group.sure.toFixed(2)}` }),
    ...about(group),
  );
}

export function tile(image) {
  const copies = image.copies ? ` (and ${count(image.copies, "copy", "copies")})` : "";
  const answer = image.answer === null ? "unknown" : image.answer;
  const lines = [make("p", { text: image.path + copies, title: image.path })];
  if (image.changed) {
    const was = image.was === null ? "unknown" : image.was;
    lines.push(make("p", { kind: "changed", text: `${was} → ${answer}` }));
  } else {
    lines.push(make("p", { text: answer }));
  }
  if (image.sure !== undefined) lines.push(make("p", { text: `sure ${image.sure.toFixed(2)}` }));
  if (image.name !== null) lines.push(make("p", { kind: "badge", text: image.name }));
  return make(
    "article",
    { kind: "tile", data: { image: image.id }, "aria-label": image.path },
    picture(image.id),
    ...lines,
  );
}

export function table(rows) {
  const body = rows.map((cells) =>
    make("tr", {}, ...cells.map((cell) => make("td", {}, typeof cell === "string" ? make("span", { text: cell }) : cell))),
  );
  return make("table", {}, ...body);
}

export function history(events) {
  return table(
    events.map((event) => [
      `${event.id}`,
      event.time.slice(0, 19).replace("T", " "),
      make("span", { text: event.words, kind: event.undone ? "undone" : "" }),
    ]),
  );
}
