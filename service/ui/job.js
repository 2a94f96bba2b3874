// One job on the page: how it stands while it forms, and its pictures afterwards.

import { cancel, follow, get, here } from "./api.js";
import { asCurl, asPython, asked } from "./code.js";
import { $, copy, element, say } from "./dom.js";

const LOOK_MS = 1500; // between two looks at a job that waits

const when = (seconds) => (seconds < 60 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`);

export function summary(params) {
  return `${params.sampler} · ${params.schedule} · ${params.steps} steps · guidance ${params.guidance} · seed ${params.seed}`;
}

// A card under "In progress" that follows its job. Gives the job as it ended.
export async function watch(job) {
  const look = element("img", { alt: "", hidden: "" });
  const bar = element("progress", { max: Math.max(job.progress.steps_total, 1), value: job.progress.steps_done, "aria-label": "Progress" });
  const line = element("p", { text: standing(job) }), stop = element("button", { type: "button", text: "Cancel" });
  const card = element("article", { "data-job": job.id }, look, element("p", { text: job.params.prompt }), bar, line, element("div", { class: "buttons" }, stop));
  stop.addEventListener("click", async () => {
    stop.disabled = true;
    await cancel(job.id).catch((error) => (line.textContent = error.message));
  });
  $("now").append(card);
  emptiness();
  const timer = setInterval(async () => {
    const now = await get(`jobs/${job.id}`).catch(() => null);
    if (now?.status === "queued") line.textContent = standing(now);
  }, LOOK_MS);
  try {
    await follow(job.id, (type, data) => {
      bar.value = data.steps_done ?? bar.value;
      if (type === "progress" || type === "started") line.textContent = `Drawing: ${bar.value} of ${bar.max} evaluations`;
      if (type === "requeued") line.textContent = "Its worker went away; it waits for another.";
      if (data.preview) Object.assign(look, { src: data.preview, hidden: false });
    });
    return await get(`jobs/${job.id}`);
  } finally {
    clearInterval(timer);
    card.remove();
    emptiness();
  }
}

function standing(job) {
  if (job.status === "running") return "Drawing";
  const ahead = job.position ? `${job.position} of your jobs before it` : "it is next among your jobs";
  return `Waiting: ${ahead}${job.eta_s === null ? "" : `, about ${when(job.eta_s)}`}`;
}

function emptiness() {
  $("nothing").hidden = $("now").children.length > 0;
}

// The cards of a job that has ended: one for each picture, or one that says why there is none.
export function finished(job, actions) {
  if (job.status === "succeeded" && job.images.length) return job.images.map((image) => picture(job, image, actions));
  const why = job.error?.message ?? (job.status === "canceled" ? "Canceled." : "Its pictures were erased.");
  return [element("article", { "data-job": job.id }, element("p", { text: job.params.prompt }), element("p", { class: "bad", text: why }), buttons(job, job.params, actions))];
}

function picture(job, image, actions) {
  const url = here(image.url), params = { ...job.params, seed: image.seed, num_images: 1 };
  const name = `${job.id}-${job.images.indexOf(image)}.${image.key.split(".").pop()}`;
  const look = element("button", { type: "button", class: "look", "aria-label": `Enlarge: ${params.prompt}`, onclick: () => enlarge(url, params.prompt) },
    element("img", { src: url, alt: params.prompt, width: image.width, height: image.height, loading: "lazy" }));
  const warnings = job.warnings.map((warning) => element("small", { text: warning.message }));
  const bar = buttons(job, params, actions);
  bar.append(
    element("button", { type: "button", text: "Begin with it", onclick: () => actions.begin(image, url) }),
    element("button", { type: "button", text: "Variation", onclick: () => actions.variation(params, image) }));
  bar.append(element("a", { href: url, download: name, text: "Save" }));
  return element("article", { "data-job": job.id }, look, element("p", { text: params.prompt }), element("small", { text: summary(params) }), ...warnings, bar);
}

function buttons(job, params, actions) {
  const button = (text, onclick) => element("button", { type: "button", text, onclick });
  return element("div", { class: "buttons" },
    button("Same again", () => actions.again(params)),
    button("Vary", () => actions.vary(params)),
    button("curl", () => copy(asCurl(params, actions.withKey()))),
    button("Python", () => copy(asPython(params))));
}

export function enlarge(url, alt) {
  const viewer = $("viewer");
  Object.assign(viewer.querySelector("img"), { src: url, alt });
  viewer.showModal();
}

// The request that draws the like of it.
export function request(params, change = {}) {
  return { ...asked(params), preview: true, ...change };
}

export function ended(job) {
  say(job.status === "succeeded" ? `Done: ${job.params.prompt}` : `${job.status}: ${job.params.prompt}`);
}
