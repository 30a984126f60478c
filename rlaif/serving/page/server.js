// Requests to the server, the events of a stream, and refusals as problems that the page has words for.

const CODES = { model_not_found: "unknown_model", context_length_exceeded: "too_long" };
const STATUSES = { 401: "needs_token", 413: "too_large", 429: "busy", 503: "stopping" };
let token = "";

export function setToken(text) { token = text; }

/**
 * What went wrong. `key` names its words; `said` is what the server said; `until` is the time (milliseconds since
 * 1970) before which it should not be asked again, or null.
 */
export class Problem extends Error {
  constructor(key, { values = {}, status = 0, said = "", until = null } = {}) {
    super(key);
    Object.assign(this, { key, values, status, said, until });
  }

  /** As it is kept with the conversation. */
  plain() {
    return { key: this.key, values: this.values, said: this.said, until: this.until };
  }
}

/** The time that a Retry-After header names: seconds, or a date. */
function untilOf(header) {
  if (header === null) return null;
  const time = /^\d+$/.test(header) ? Date.now() + 1000 * Number(header) : Date.parse(header);
  return Number.isNaN(time) ? null : time;
}

async function problemOf(answer) {
  const body = await answer.json().catch(() => null);
  const error = (body && body.error) || {};
  const own = CODES[error.code] || STATUSES[answer.status];
  return new Problem(own || (answer.status >= 500 ? "failed" : "refused"), {
    values: { status: answer.status }, status: answer.status,
    said: typeof error.message === "string" ? error.message : "",
    until: untilOf(answer.headers.get("Retry-After")),
  });
}

/** Ask; raises a Problem, or AbortError when `signal` says so. */
async function ask(method, path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("unreachable");
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function json(method, path, body) {
  const answer = await ask(method, path, body);
  return answer.json().catch(() => ({}));
}

export const get = path => json("GET", path);
export const post = (path, body) => json("POST", path, body);
export const remove = path => json("DELETE", path);

/** The data of the server-sent events of an answer, as they come. */
async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const found = (rest + value).split(/\r?\n/);
    rest = found.pop();
    for (const line of found) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

/** The chunks of a streamed completion. */
export async function* chunks(body, signal) {
  const answer = await ask("POST", "v1/chat/completions", { ...body, stream: true }, signal);
  try {
    for await (const data of lines(answer)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem("failed", { values: { status: 500 }, said: String(chunk.error.message) });
      yield chunk;
    }
  } catch (error) {
    throw error instanceof Problem || error.name === "AbortError" ? error : new Problem("broken_off");
  }
  throw new Problem("broken_off");
}
