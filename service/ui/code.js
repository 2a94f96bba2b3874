// A job as a command and as a program, to be pasted elsewhere.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const OF_PICTURES = ["mask_feather", "strength", "start", "end"]; // they mean something beside an image only

// What a request may say of it: no kind, no empty default but for the prompt, which must be there.
export function asked(params) {
  const said = (name, value) => name === "prompt" || (name !== "kind" && value !== null && value !== "" && !isEmpty(value));
  const kept = Object.entries(params).filter(([name, value]) => said(name, value) && (params.image || !OF_PICTURES.includes(name)));
  return Object.fromEntries(kept);
}

const isEmpty = (value) => typeof value === "object" && Object.keys(value).length === 0;

export function asCurl(params, withKey) {
  const lines = [`curl -s ${quoted(new URL("generate", location.href).href)}`, "-H 'Content-Type: application/json'", "-H 'Prefer: wait=60'"];
  if (withKey) lines.push(`-H "Authorization: Bearer $CELADON_API_KEY"`);
  return [...lines, `-d ${quoted(JSON.stringify(asked(params)))}`].join(" \\\n  ");
}

export function asPython(params) {
  const { prompt = "", ...rest } = asked(params);
  const given = Object.entries(rest).map(([name, value]) => `, ${name}=${literal(value)}`).join("");
  const place = new URL(".", location.href).href.replace(/\/$/, "");
  return [
    "from celadon import Client",
    "",
    `with Client(${literal(place)}) as celadon:`,
    `    job = celadon.wait(celadon.submit(${literal(prompt)}${given}).id)`,
    "    for number, image in enumerate(job.images):",
    `        celadon.download(image, f"{job.id}-{number}.${params.output_format === "jpeg" ? "jpg" : params.output_format}")`,
    "",
  ].join("\n");
}

function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${literal(v)}`).join(", ")}}`;
  return JSON.stringify(value); // JSON's strings and numbers are Python's
}
