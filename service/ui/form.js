// The form: what can be chosen, what was chosen, and what is wrong with it.

import { get } from "./api.js";
import { drawCurve } from "./curve.js";
import { $, element } from "./dom.js";

const KEPT = "celadon.form";
const TEXTS = ["prompt", "negative_prompt", "sampler", "schedule", "model", "output_format"];
const NUMBERS = ["steps", "guidance", "width", "height", "seed", "num_images"];

let models = [], samplers = [], schedules = [];

export const model = () => models.find((m) => m.id === $("model").value) ?? models[0];
export const sampler = (id) => samplers.find((s) => s.id === id);

// Fills the lists; keeps what is chosen where it can still be chosen.
export async function loadChoices() {
  models = await get("models");
  if (!models.length) return false;
  const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  list($("model"), models.map((m) => [m.id, m.title || m.id]), kept.model ?? models.find((m) => m.default)?.id);
  await loadModel(kept);
  return true;
}

export async function loadModel(kept = read()) {
  const query = `?model=${encodeURIComponent(model().id)}`;
  [samplers, schedules] = await Promise.all([get(`samplers${query}`), get(`schedules${query}`)]);
  schedules = schedules.filter((s) => s.id !== "custom"); // its levels are given by programs
  list($("sampler"), samplers.map((s) => [s.id, s.name]));
  list($("schedule"), schedules.map((s) => [s.id, s.name]));
  list($("axis-samplers"), samplers.map((s) => [s.id, s.name]));
  for (const name of ["width", "height"]) {
    Object.assign($(name), { min: model().size_multiple, step: model().size_multiple, max: model()[`max_${name}`] });
  }
  $("steps").max = model().max_steps;
  fill({ ...defaults(), ...kept });
}

function list(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value, text })));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

export function defaults() {
  const { sampler, schedule, steps, guidance } = model().defaults;
  const { width, height } = model();
  return { sampler, schedule, steps, guidance, width, height, seed: "", num_images: 1, output_format: "png" };
}

// Writes these fields; the others stay.
export function fill(values) {
  for (const name of [...TEXTS, ...NUMBERS]) {
    if (!(name in values)) continue;
    const field = $(name), value = values[name] ?? "";
    if (field.tagName !== "SELECT" || [...field.options].some((o) => o.value === value)) field.value = value;
  }
  changed();
}

// The request: an empty number is left out, so that the service's default holds.
export function read() {
  const said = Object.fromEntries(TEXTS.map((name) => [name, $(name).value]));
  for (const name of NUMBERS) if ($(name).value.trim() !== "") said[name] = Number($(name).value);
  return said;
}

// The model's size that is nearest to a picture's: its own where the model can draw it, else as large as may be in its proportions.
export function fit(wide, high) {
  const { size_multiple: unit, max_width, max_height } = model(), scale = Math.min(1, max_width / wide, max_height / high);
  const side = (length) => Math.max(unit, Math.round((length * scale) / unit) * unit);
  fill({ width: Math.min(side(wide), max_width), height: Math.min(side(high), max_height) });
}

export function changed() {
  localStorage.setItem(KEPT, JSON.stringify(read()));
  drawCurve(schedules.find((s) => s.id === $("schedule").value), Number($("steps").value));
}

// What the browser could not read as a number is no wish to leave the field out.
export function unreadable() {
  return NUMBERS.find((name) => $(name).validity.badInput);
}

export function complain(error) {
  for (const name of [...TEXTS, ...NUMBERS, "image", "strength"]) $(name).removeAttribute("aria-invalid");
  $("problem").textContent = error ? error.message : "";
  const field = error?.param && $("form").elements[error.param];
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", "problem");
  field.focus();
}
