// The picture to begin with: chosen, dropped, pasted or taken from the gallery; and the part of it that is to be drawn anew.

import { image, upload } from "./api.js";
import { $, say } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const USUAL = 0.8, WITH_MASK = 1; // strength, as the service has it
const STEP = 8; // pixels of the page that an arrow key moves the brush

let begun = null; // { key, bitmap }
let mask = null, maskKey = "", painted = false; // a canvas of the picture's size, and where it lies when it was sent
let strokes = 0; // grows with every change of the mask, so that what was sent is known to be what there is
let at = null, erasing = false, drawing = false;

const view = () => $("canvas").getContext("2d");

// Takes a file. `fit(width, height)` is told the size that it has.
export async function take(file, fit) {
  if (!TYPES.includes(file.type)) throw new Error("A picture is a PNG, JPEG or WebP.");
  await busy("The picture is being sent …", async () => {
    const { key } = await upload(file);
    await begin(key, await createImageBitmap(await image(`uploads/${key}`)), fit); // as the service keeps it: upright, without data beside
  });
}

// Takes a picture of the gallery, by its key; `url` is where it can be seen.
export async function takeDrawn(key, url, fit) {
  const refused = () => Promise.reject(new Error("This page cannot fetch the picture; save it, and choose the file.")); // of a store elsewhere
  await busy("The picture is being fetched …", async () => begin(key, await createImageBitmap(await image(url).catch(refused)), fit));
}

async function busy(text, work) {
  $("picture-state").textContent = text;
  try {
    await work();
  } catch (error) {
    $("picture-state").textContent = "";
    throw Object.assign(error, { param: "image" });
  }
}

function begin(key, bitmap, fit) {
  begun = { key, bitmap };
  mask = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  Object.assign($("canvas"), { width: bitmap.width, height: bitmap.height });
  at = { x: bitmap.width / 2, y: bitmap.height / 2 };
  clearMask();
  $("with-picture").hidden = false;
  $("picture-state").textContent = `${bitmap.width} × ${bitmap.height} pixels`;
  fit(bitmap.width, bitmap.height);
  say("The drawing begins with this picture.");
}

export function remove() {
  begun = mask = null;
  maskKey = "";
  painted = false;
  strokes += 1;
  $("with-picture").hidden = true;
  $("picture-state").textContent = "";
  $("image").value = "";
  say("The picture is gone.");
}

// What it adds to a request. A mask is sent first, unless this is only a question what it would cost.
// While it is on its way the picture may be changed or removed: what counts is what there was when it was asked for.
export async function said({ dry = false } = {}) {
  if (!begun) return {};
  const asked = { image: begun.key, strength: Number($("strength").value) }, seen = strokes;
  if (!painted || (dry && !maskKey)) return asked;
  const key = maskKey || (await upload(await blackAndWhite())).key;
  if (seen === strokes) maskKey = key;
  return { ...asked, mask: key };
}

function blackAndWhite() {
  const sent = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height }), ink = sent.getContext("2d");
  const fill = (color, how) => {
    Object.assign(ink, { fillStyle: color, globalCompositeOperation: how });
    ink.fillRect(0, 0, sent.width, sent.height);
  };
  ink.drawImage(mask, 0, 0);
  fill("#fff", "source-in");
  fill("#000", "destination-over");
  return new Promise((done) => sent.toBlob(done, "image/png"));
}

function clearMask() {
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
  [painted, maskKey] = [false, ""];
  strokes += 1;
  setStrength(USUAL);
  show();
}

export function setStrength(value) {
  $("strength").value = value;
  told();
}

export function told() {
  $("strength-is").textContent = Number($("strength").value).toFixed(2);
}

// The brush is as wide as the slider says, in hundredths of the picture's shorter side.
const radius = () => (Number($("brush").value) / 200) * Math.min(mask.width, mask.height);

function paint(x, y) {
  const ink = mask.getContext("2d");
  ink.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  ink.fillStyle = ink.strokeStyle = "#06f";
  Object.assign(ink, { lineWidth: 2 * radius(), lineCap: "round" });
  ink.beginPath();
  ink.moveTo(at.x, at.y);
  ink.lineTo(x, y);
  ink.stroke();
  ink.beginPath(); // and a dot: of a line without a length a canvas draws nothing
  ink.arc(x, y, radius(), 0, 2 * Math.PI);
  ink.fill();
  at = { x, y };
  if (!painted && !erasing) setStrength(WITH_MASK);
  painted ||= !erasing;
  maskKey = "";
  strokes += 1;
  show();
}

function show() {
  const ink = view(), { width, height } = $("canvas");
  ink.clearRect(0, 0, width, height);
  ink.drawImage(begun.bitmap, 0, 0);
  ink.globalAlpha = 0.6;
  ink.drawImage(mask, 0, 0);
  ink.globalAlpha = 1;
  if (document.activeElement !== $("canvas")) return;
  for (const [color, wide] of [["#000", 3], ["#fff", 1]]) { // the brush, seen on any picture
    Object.assign(ink, { strokeStyle: color, lineWidth: (wide * width) / $("canvas").clientWidth });
    ink.beginPath();
    ink.arc(at.x, at.y, radius(), 0, 2 * Math.PI);
    ink.stroke();
  }
}

function place(event) {
  const box = $("canvas").getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * mask.width, ((event.clientY - box.top) / box.height) * mask.height];
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  const scale = mask.width / $("canvas").clientWidth, [dx, dy] = MOVES[event.key] ?? [0, 0];
  if (event.key === " ") drawing = event.type === "keydown";
  if (event.type === "keydown" && (MOVES[event.key] || event.key === " ")) {
    const x = Math.min(Math.max(at.x + dx * STEP * scale, 0), mask.width), y = Math.min(Math.max(at.y + dy * STEP * scale, 0), mask.height);
    if (drawing) paint(x, y);
    else at = { x, y };
    show();
  }
  if (MOVES[event.key] || event.key === " ") event.preventDefault();
}

// Wires the field; `taken(promise)` is told of every picture that comes.
export function start(fit, taken) {
  const files = (list) => [...(list ?? [])].filter((file) => file.type.startsWith("image/"));
  const first = (list) => files(list).slice(0, 1).forEach((file) => taken(take(file, fit)));
  $("image").addEventListener("change", () => first($("image").files));
  document.addEventListener("paste", (event) => first(event.clipboardData?.files));
  for (const name of ["dragover", "drop"]) {
    $("picture").addEventListener(name, (event) => {
      event.preventDefault();
      if (name === "drop") first(event.dataTransfer.files);
    });
  }
  const canvas = $("canvas");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus();
    drawing = true;
    [at.x, at.y] = place(event);
    paint(...place(event));
  });
  canvas.addEventListener("pointermove", (event) => drawing && event.buttons && paint(...place(event)));
  for (const name of ["pointerup", "pointercancel", "blur"]) canvas.addEventListener(name, () => (drawing = false));
  for (const name of ["keydown", "keyup"]) canvas.addEventListener(name, onKey);
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => begun && show());
  $("erase").addEventListener("click", () => {
    erasing = !erasing;
    $("erase").setAttribute("aria-pressed", String(erasing));
  });
  $("clear").addEventListener("click", clearMask);
  $("remove").addEventListener("click", remove);
  $("strength").addEventListener("input", told);
}
