// The service as this page sees it: requests, errors in their one shape, and the events of a job.

const PAUSE_MS = 1000; // before a broken stream is opened again
const FINAL = new Set(["succeeded", "failed", "canceled"]);

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param;
  }
}

let key = sessionStorage.getItem("key") ?? "";

export function useKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

function headers(more = {}) {
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

async function answer(path, options = {}) {
  const got = await fetch(path, { ...options, headers: headers(options.headers), credentials: "omit" }); // or a 401 opens a dialog
  if (got.ok) return got;
  const body = await got.json().catch(() => ({}));
  const said = typeof body.error === "object" ? body.error : { code: "error", message: `The service answered ${got.status}.` };
  throw new ApiError(got.status, said);
}

export const get = async (path) => (await answer(path)).json();
export const cancel = async (id) => (await answer(`jobs/${id}`, { method: "DELETE" })).json();

export const image = async (path) => (await answer(path)).blob();

// A picture that jobs may begin with; its answer holds the key.
export async function upload(blob) {
  return (await answer("uploads", { method: "POST", body: blob, headers: { "Content-Type": blob.type } })).json();
}

// `again` is the key under which a repeat after a lost answer stays one job.
export async function generate(body, { dry = false, again = crypto.randomUUID?.() } = {}) {
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  if (!dry && again) options.headers["Idempotency-Key"] = again;
  return (await answer(dry ? "generate?dry_run=true" : "generate", options)).json();
}

// What the service signed, asked of the host that this page came from.
export function here(url) {
  const address = new URL(url, location.href);
  return new URL(address.pathname + address.search, location.origin).href;
}

// Calls `on(type, data)` for every event of a job until its last one. A stream that breaks is opened again where it stopped.
export async function follow(id, on) {
  let last = "";
  for (;;) {
    try {
      const stream = await answer(`jobs/${id}/events`, { headers: last ? { "Last-Event-ID": last } : {} });
      for await (const event of events(stream.body)) {
        last = event.id || last;
        on(event.type, event.data);
        if (FINAL.has(event.type)) return;
      }
    } catch (error) {
      if (error instanceof ApiError && error.status < 500 && error.status !== 429) throw error;
    }
    await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
}

// Server-sent events of a body, https://html.spec.whatwg.org/multipage/server-sent-events.html. EventSource sends no keys.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text = (text + value).replace(/\r\n?/g, "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const event = parse(text.slice(0, end));
      text = text.slice(end + 2);
      if (event.data) yield { ...event, data: JSON.parse(event.data) };
    }
  }
}

function parse(block) {
  const event = { id: "", type: "message", data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = line.match(/^(\w+): ?(.*)$/) ?? [];
    if (name === "data") event.data += value;
    else if (name === "event") event.type = value;
    else if (name === "id") event.id = value;
  }
  return event;
}
