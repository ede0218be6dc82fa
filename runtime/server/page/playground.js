// The playground: one or two samplers of a model, from the same seeds. What it asks for is what the model says it takes.

const ROWS = 200; // of a table
const ZEROS = 256; // numbers that an array is filled with, to begin with

const at = (id) => document.getElementById(id);
const say = (text, bad = false) => {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
};
let models = [];

const headers = () => {
  const found = { "Content-Type": "application/json" };
  if (at("key").value) found.Authorization = `Bearer ${at("key").value}`;
  return found;
};

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers() });
  if (response.ok) return response;
  if (response.status === 401) at("key-field").hidden = false;
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.error ?? `the server answered ${response.status}`);
}

const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
const model = () => models.find(({ name }) => name === at("model").value);

const element = (kind, ...parts) => {
  const made = document.createElement(kind);
  made.append(...parts);
  return made;
};

const zeros = ([size, ...inner]) => Array.from({ length: size }, () => (inner.length ? zeros(inner) : 0));

// An input of finitely many values is chosen, one of numbers is typed.
function field({ name, shape, meaning, optional, choices, names }) {
  const asked = document.createElement(choices ? "select" : "textarea");
  if (choices) {
    const values = Array.from({ length: choices }, (_, i) => [`${i}`, names[i] ?? `${i}`]);
    fill(asked, [["", "each in turn"], ...(optional ? [["none", "none"]] : []), ...values]);
  } else {
    if (shape.reduce((a, b) => a * b, 1) <= ZEROS && !optional) asked.value = JSON.stringify(shape.length ? zeros(shape) : 0);
    asked.placeholder = `${shape.join("x")} numbers as JSON${optional ? ", or nothing for none" : ""}`;
    asked.required = !optional;
    asked.rows = 2;
  }
  asked.id = `input-${name}`;
  asked.title = meaning;
  return element("label", `${name} `, asked);
}

function show() {
  const { name, version, inputs, output, plans } = model();
  at("name").textContent = name;
  at("about").textContent = `${output.name}: ${output.about}; version ${version}`;
  const samplers = plans.map((plan) => [plan.name, `${plan.name}, ${plan.calls} call${plan.calls === 1 ? "" : "s"}`]);
  fill(at("first"), samplers);
  fill(at("second"), [["", "nothing"], ...samplers]);
  at("first").value = model().default;
  at("inputs").replaceChildren(...inputs.map(field));
  at("facts").replaceChildren(...plans.map((plan) => {
    const line = document.createElement("p");
    line.textContent = `${plan.name}: ${plan.solver}; ${plan.precision} on ${plan.backend}`;
    return line;
  }));
}

function parsed(name, text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name} is numbers as JSON has them, such as [[0.5, 1], [2, 3]]`);
  }
}

// The values of an input for so many samples, or one for all; none where it is left out.
function values({ name, choices }, samples) {
  const given = at(`input-${name}`).value.trim();
  if (!choices) return given === "" ? [] : [parsed(name, given)];
  if (given === "none") return [];
  return given === "" ? Array.from({ length: samples }, (_, i) => i % choices) : [Number(given)];
}

// A seed may be larger than JavaScript's exact numbers: it goes into the JSON as it was typed.
function request(plan) {
  const { name, inputs, output, plans } = model();
  const { takes } = plans.find((other) => other.name === plan);
  const samples = Number(at("samples").value);
  const asked = { model: name, plan, samples, ...(output.pictures ? { scale: 2 } : { format: "json" }) };
  for (const input of inputs.filter((each) => takes.includes(each.name))) {
    const given = values(input, samples);
    if (given.length) asked[input.name] = given;
  }
  return JSON.stringify(asked).replace(/}$/, `,"seed":${BigInt(at("seed").value)}}`);
}

async function picture(response, plan) {
  const image = document.createElement("img");
  image.src = URL.createObjectURL(await response.blob());
  image.alt = `images of ${plan}`;
  await image.decode();
  return image;
}

// The rows of a sample's numbers, each behind its place on every axis.
const rows = (part, axes, place = []) =>
  axes ? part.flatMap((inner, i) => rows(inner, axes - 1, [...place, i])) : [[place, part]];

async function numbers(response, { name, axes, columns }) {
  const all = rows((await response.json())[name], axes.length + 1);
  const head = ["sample", ...axes, ...columns].map((text) => element("th", text));
  const shown = all.slice(0, ROWS).map(([place, row]) =>
    element("tr", ...place.map((i) => element("th", `${i}`)), ...row.map((x) => element("td", `${Number(x.toPrecision(5))}`))));
  const table = element("table", element("thead", element("tr", ...head)), element("tbody", ...shown));
  const more = all.length > ROWS ? `the first ${ROWS} of ${all.length} rows` : "";
  const frame = element("div", table, element("p", more));
  frame.className = "numbers";
  return frame;
}

async function result(plan) {
  const begin = performance.now();
  const response = await ask("generate", { method: "POST", body: request(plan) });
  const { output } = model();
  const shown = output.pictures ? await picture(response, plan) : await numbers(response, output);
  const made = Number(response.headers.get("X-Latency-Ms")).toFixed(1);
  const times = `${made} ms on the server, ${(performance.now() - begin).toFixed(0)} ms until shown`;
  return element("figure", element("figcaption", element("strong", plan), times), shown);
}

async function generate() {
  at("generate").disabled = at("next").disabled = true;
  say("Generating");
  try {
    const figures = [];
    // One after the other, so that neither latency holds the other's work.
    for (const plan of [at("first").value, at("second").value]) if (plan) figures.push(await result(plan));
    for (const image of document.querySelectorAll("#results img")) URL.revokeObjectURL(image.src);
    at("results").replaceChildren(...figures);
    say(`${at("samples").value} sample${at("samples").value === "1" ? "" : "s"} from seed ${at("seed").value}`);
  } catch (error) {
    say(error.message, true);
  }
  at("generate").disabled = at("next").disabled = false;
}

async function start() {
  models = await (await ask("models")).json();
  fill(at("model"), models.map(({ name }) => [name, name]));
  at("model-field").hidden = models.length === 1;
  show();
  await generate();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (models.length) generate();
  else start().catch((error) => say(error.message, true));
});
at("model").addEventListener("change", show);
at("next").addEventListener("click", () => {
  at("seed").value = `${BigInt(at("seed").value) + BigInt(at("samples").value)}`;
  generate();
});
start().catch((error) => {
  say(error.message, true);
  at("generate").disabled = false;
});
