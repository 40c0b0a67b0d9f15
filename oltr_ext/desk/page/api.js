// Every address is relative: the page's own holds the token.

export class Refusal extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

async function answer(sent) {
  let response;
  try {
    response = await sent;
  } catch {
    throw new Refusal(0, "The desk does not answer: is `oltr desk` still running?");
  }
  let held = null;
  try {
    held = await response.json();
  } catch {
    held = {};
  }
  if (!response.ok) throw new Refusal(response.status, held.error || `refused (${response.status})`);
  return held;
}

export const get = (path) => answer(fetch(path, { cache: "no-store", redirect: "error" }));

export const post = (path, body) =>
  answer(
    fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      redirect: "error",
    }),
  );
