// The studio page: wires the form, the jobs in progress and the gallery together.

import { ApiError, generate, get, useKey } from "./api.js";
import { $, say } from "./dom.js";
import { changed, complain, defaults, fill, fit, loadChoices, loadModel, read, unreadable } from "./form.js";
import { axes, drawGrid } from "./grid.js";
import { ended, finished, request, watch } from "./job.js";
import * as picture from "./picture.js";

const AGAIN_MS = 3000; // before the service is asked once more whether it is up
const QUIET_MS = 400; // after the last key, before the cost is asked for
let cursor = "";

const actions = {
  again: (params) => {
    fill({ ...params, model: params.model });
    draw(request(params));
  },
  vary: (params) => draw(request(params, { seed: undefined })),
  variation: ({ prompt, model }, image) => draw({ prompt, model, kind: "variations", image: image.key, preview: true }),
  begin: (image, url) => comes(picture.takeDrawn(image.key, url, fit)),
  withKey: () => $("key").value !== "",
};

async function draw(body) {
  complain(null);
  try {
    await show(await generate(body));
  } catch (error) {
    complain(error);
  }
}

async function show(job) {
  const done = await watch(job);
  $("gallery").prepend(...finished(done, actions));
  ended(done);
}

// What the form says, with the picture and its mask; those are sent before.
async function wish(how) {
  const name = unreadable();
  if (name) throw Object.assign(new Error("This is no number."), { param: name });
  return { ...read(), ...(await picture.said(how)), preview: true };
}

// A picture that is on its way into the form.
async function comes(taken) {
  complain(null);
  try {
    await taken;
    tellCost();
  } catch (error) {
    complain(error);
  }
}

async function onDraw(event) {
  event.preventDefault();
  try {
    draw(await wish());
  } catch (error) {
    complain(error);
  }
}

async function onCompare() {
  complain(null);
  try {
    const { preview, ...body } = await wish();
    await drawGrid({ ...body, seed: body.seed ?? Math.floor(Math.random() * 2 ** 32) }, axes());
  } catch (error) {
    complain(error);
  }
}

let quiet;
function onChange() {
  changed();
  clearTimeout(quiet);
  quiet = setTimeout(tellCost, QUIET_MS);
}

// What it would cost, and what is wrong with it, before anything is queued.
async function tellCost() {
  if (!$("prompt").value) return ($("cost").textContent = "");
  try {
    const told = await generate(await wish({ dry: true }), { dry: true });
    const warnings = told.warnings.map((warning) => ` ${warning.message}`).join("");
    $("cost").textContent = `About ${told.predicted_s.toFixed(1)} s of work, done in ${told.eta_s.toFixed(1)} s.${warnings}`;
  } catch (error) {
    $("cost").textContent = error.message;
  }
}

async function older() {
  const page = await get(`jobs?status=succeeded&limit=20${cursor ? `&cursor=${cursor}` : ""}`);
  const known = new Set([...document.querySelectorAll("#gallery [data-job]")].map((card) => card.dataset.job));
  const fresh = page.jobs.filter((job) => job.images.length && !known.has(job.id));
  $("gallery").append(...fresh.flatMap((job) => finished(job, actions)));
  cursor = page.cursor ?? "";
  $("more").hidden = !cursor;
}

// Jobs that were under way when the page was loaded.
async function goOn() {
  for (const status of ["running", "queued"]) {
    const page = await get(`jobs?status=${status}&limit=50`);
    for (const job of page.jobs.reverse()) show(job).catch((error) => complain(error));
  }
}

async function connect() {
  try {
    const some = await loadChoices();
    $("state").textContent = some ? "Ready" : "No worker has announced a model yet.";
    if (some) {
      $("gallery").replaceChildren();
      cursor = "";
      await Promise.all([older(), goOn()]);
      return tellCost();
    }
  } catch (error) {
    $("state").textContent = error.status === 401 ? "This service wants an API key." : error.message;
    if (error.status === 401) return ($("access").open = true);
    if (error instanceof ApiError && error.status < 500) return;
  }
  setTimeout(connect, AGAIN_MS);
}

$("form").addEventListener("submit", onDraw);
$("form").addEventListener("input", onChange);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onDraw(event);
});
$("model").addEventListener("change", () => loadModel().catch(complain));
$("defaults").addEventListener("click", () => {
  fill(defaults());
  onChange();
  say("Defaults are set.");
});
$("compare").addEventListener("click", () => {
  $("axes").hidden = !$("axes").hidden;
  $("compare").setAttribute("aria-expanded", String(!$("axes").hidden));
});
$("compare-now").addEventListener("click", onCompare);
picture.start(fit, comes);
$("more").addEventListener("click", () => older().catch(complain));
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => {
  useKey($("key").value.trim());
  connect();
});
connect();
