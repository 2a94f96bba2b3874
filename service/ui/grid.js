// Samplers against steps, all with one seed: a table that fills as its jobs end.

import { follow, generate, get, here } from "./api.js";
import { $, element, say } from "./dom.js";
import { sampler } from "./form.js";
import { enlarge } from "./job.js";

const MOST = 60; // cells

// Raises Error where the axes cannot be read.
export function axes() {
  const samplers = [...$("axis-samplers").selectedOptions].map((option) => option.value);
  const steps = $("axis-steps").value.split(",").map((text) => Number(text.trim()));
  if (!samplers.length) throw new Error("Choose at least one sampler to compare.");
  if (!steps.every((n) => Number.isInteger(n) && n > 0)) throw new Error("Steps are whole numbers, with commas between them.");
  if (samplers.length * steps.length > MOST) throw new Error(`At most ${MOST} pictures fit into one comparison.`);
  return { samplers, steps };
}

export async function drawGrid(body, { samplers, steps }) {
  const head = element("tr", {}, element("td"), ...steps.map((n) => element("th", { scope: "col", text: `${n} steps` })));
  const cells = new Map(), rows = samplers.map((id) => {
    const row = steps.map((n) => element("td", {}, element("small", { text: "…" })));
    row.forEach((cell, i) => cells.set(cell, { ...body, sampler: id, steps: steps[i], num_images: 1 }));
    return element("tr", {}, element("th", { scope: "row", text: sampler(id)?.name ?? id }), ...row);
  });
  const title = `${body.prompt} · seed ${body.seed}`;
  const table = element("table", {}, element("caption", { text: title }), element("thead", {}, head), element("tbody", {}, ...rows));
  $("grids").prepend(element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Comparison: ${title}` }, table));
  await Promise.all([...cells].map(([cell, wanted]) => cellOf(cell, wanted)));
  say("The comparison is complete.");
}

// One refusal, of a sampler that takes no such number of steps say, leaves the other cells alone.
async function cellOf(cell, wanted) {
  try {
    const job = await generate(wanted);
    await follow(job.id, () => {});
    const done = await get(`jobs/${job.id}`);
    if (done.status !== "succeeded") throw new Error(done.error?.message ?? done.status);
    const url = here(done.images[0].url), alt = `${wanted.sampler}, ${wanted.steps} steps`;
    const open = element("button", { type: "button", class: "look", "aria-label": `Enlarge: ${alt}`, onclick: () => enlarge(url, alt) }, element("img", { src: url, alt }));
    cell.replaceChildren(open);
  } catch (error) {
    cell.replaceChildren(element("small", { class: "bad", text: error.message }));
  }
}
