// What a person does. Decisions go one after another, each about what was shown when it was taken.

import { post, Refusal } from "./api.js";
import { chosen, desk, draw, grouped, inGroup, items, load, poll, say, show, version } from "./desk.js";
import { ask } from "./naming.js";

let last = Promise.resolve();

function act(path, body, words) {
  last = last.then(async () => {
    say(words ? `${words} …` : "");
    try {
      await post(path, { version: version(), ...body });
      desk.marked.clear();
      await poll();
      say("");
      return true;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      await poll();
      await load();
      const again = error.status === 409 ? "\nNothing was changed; this is how it stands now." : "";
      say(error.message + again, true);
      return false;
    }
  });
  return last;
}

const decide = (body) => act("api/do", body);

const about = () => (grouped() ? { groups: chosen() } : { images: chosen() });
const group = () => Number(desk.view);

export async function name() {
  const whole = inGroup() && desk.marked.size === 0;
  const what = whole ? { groups: [group()] } : about();
  const number = (what.groups || what.images).length;
  if (!number || desk.view === "bad" || desk.view === "history") return;
  const cards = what.groups ? (whole ? [desk.held.group] : items().filter((g) => what.groups.includes(g.id))) : [];
  const near = cards.flatMap((each) => [...each.answers, ...each.nearest].map(([each]) => each));
  const shown = version();
  const words = what.groups
    ? `Name of ${number === 1 ? "the group" : `${number} groups, which become one`}`
    : `Name of ${number === 1 ? "the image" : `${number} images`}`;
  const given = await ask(words, cards.length === 1 ? cards[0].name || "" : "", [...new Set(near)]);
  if (given === null) return;
  await decide({ ...what, do: "name", name: given || null, version: shown });
}

export async function merge() {
  if (!grouped()) return say("Merge groups from their list: mark two or more.", true);
  await decide({ do: "merge", groups: chosen() });
}

// Marked images go out into a group of their own; without marks the group is put in two.
export async function split() {
  if (desk.marked.size && !grouped()) return await decide({ do: "move", images: chosen(), to: "new" });
  const one = inGroup() ? [group()] : chosen();
  if (grouped() || inGroup()) await decide({ do: "split", groups: one });
}

export async function move(to) {
  if (items().length) await decide({ do: "move", ...about(), to });
}

export const regroup = () => decide({ do: "regroup" });
export const undo = () => act("api/undo", {}, "taking back");
export const redo = () => act("api/redo", {}, "doing again");

export async function enroll() {
  if (!desk.status || !desk.status.plan || !desk.status.plan.length) return say("Nothing waits to be enrolled.", true);
  if (await act("api/enroll", {}, "enrolling, and asking again of all images")) await show("changed");
}

export function back() {
  if (desk.marked.size) {
    desk.marked.clear();
    return draw();
  }
  say("");
  return inGroup() ? show(desk.from) : undefined;
}
