// The chosen schedule, drawn: logSNR over the share of the steps, with a dot for each step.

import { $, svg } from "./dom.js";

const LEFT = 34, RIGHT = 312, TOP = 12, BOTTOM = 112;

export function drawCurve(info, steps) {
  const picture = $("curve").querySelector("svg"), caption = $("curve").querySelector("figcaption");
  $("curve").hidden = !info?.curve.length;
  if (!info?.curve.length) return;
  const values = info.curve.filter(Number.isFinite), low = Math.min(...values), high = Math.max(...values);
  const x = (share) => LEFT + share * (RIGHT - LEFT);
  const y = (value) => BOTTOM - ((value - low) / (high - low || 1)) * (BOTTOM - TOP);
  const points = info.curve.map((value, i) => [x(i / (info.curve.length - 1)), y(value)]);
  picture.replaceChildren(
    picture.querySelector("title"),
    svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}`, fill: "none" }),
    svg("path", { class: "line", d: "M" + points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L") }),
    ...dots(steps).map((share) => svg("circle", { class: "dot", r: 2.5, cx: x(share).toFixed(1), cy: y(at(info.curve, share)).toFixed(1) })),
    svg("text", { x: 2, y: TOP + 4 }, high.toFixed(1)),
    svg("text", { x: 2, y: BOTTOM }, low.toFixed(1)),
    svg("text", { x: LEFT, y: 127 }, "first step"),
    svg("text", { x: RIGHT, y: 127, "text-anchor": "end" }, "last step"),
  );
  picture.querySelector("title").textContent = `Schedule ${info.name}: log signal-to-noise ratio from ${low.toFixed(1)} to ${high.toFixed(1)}`;
  caption.textContent = `${info.name}: log signal-to-noise ratio over the steps`;
}

// A hundred dots are a line.
const dots = (steps) => (steps >= 1 && steps <= 60 ? Array.from({ length: steps + 1 }, (_, i) => i / steps) : []);

function at(curve, share) {
  const place = share * (curve.length - 1), left = Math.min(Math.floor(place), curve.length - 2);
  return curve[left] + (place - left) * (curve[left + 1] - curve[left]);
}
