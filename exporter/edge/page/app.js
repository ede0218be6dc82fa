// The page: a form, a grid, a status line. Whatever comes from the bundle is put in as text, never as markup.

import { MAX_SEED } from "./noise.js";
import { openRuntime, openSampler, readFacts } from "./sampler.js";

const at = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const opened = new Map();
let facts, runtime, running = false, stopped = false;

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

function advance(done, of) {
  at("progress").classList.toggle("done", done === of);
  if (done) Object.assign(at("progress"), { max: of, value: done });
  else at("progress").removeAttribute("value"); // moves without end
}

function loading(what, done, bytes) {
  say(`Loading ${what}, ${done ? `${megabytes(done)} of ` : ""}${megabytes(bytes)}`);
  advance(done, bytes);
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
}

/** A class by its name, or its number where it has none. */
const called = (label) => facts.names[label] ?? `${label}`;

function describe() {
  const { name, image, classes, graphs, ort } = facts;
  document.title = at("name").textContent = name;
  const calls = [...new Set(graphs.map((g) => g.nfe))].sort((a, b) => a - b).join(" or ");
  at("about").textContent =
    `${image.width}×${image.height} images from ${calls} network call${calls === "1" ? "" : "s"} each, made in this tab.`;
  const precise = new Set(graphs.map((g) => g.precision)).size > 1;
  const title = (g) => `${g.plan}: ${g.nfe} call${g.nfe > 1 ? "s" : ""}${precise ? `, ${g.precision}` : ""}`;
  options(at("graph"), graphs.map((g) => [g.name, title(g)]));
  at("graph-field").hidden = graphs.length === 1;
  const each = Array.from({ length: classes }, (_, i) => [i, called(i)]);
  const none = facts.null ? [["none", "no class"]] : [];
  options(at("label"), [["each", "each in turn"], ...none, ...each]);
  at("label-field").hidden = !classes;
  at("grid").style.setProperty("--tile", `${Math.max(80, Math.min(image.width, 320))}px`);
  const line = (text) => Object.assign(document.createElement("p"), { textContent: text });
  const sizes = graphs.map((g) => `${g.name} ${megabytes(g.bytes)}`).join(", ");
  at("facts").replaceChildren(
    line(`Graph: ${sizes}. Runtime: onnxruntime-web ${ort.version}, ${megabytes(ort.wasm.bytes)} before compression.`),
    line("Nothing leaves this browser. The same seed and class give the same image in Python with fewstep."),
  );
}

function fillForm() {
  const given = new URLSearchParams(location.search);
  for (const id of ["graph", "label", "seed", "images"]) {
    const before = at(id).value;
    if (given.has(id)) at(id).value = given.get(id);
    if (!at(id).checkValidity() || at(id).value === "") at(id).value = before;
  }
}

function readForm() {
  const seed = BigInt(at("seed").value);
  const count = Number(at("images").value);
  if (seed + BigInt(count - 1) > MAX_SEED) throw new Error(`the last seed may be ${MAX_SEED}; choose a smaller one`);
  const graph = facts.graphs.find((g) => g.name === at("graph").value);
  const label = at("label").value;
  const fixed = label === "none" ? null : Number(label);
  const { classes } = facts;
  const jobs = Array.from({ length: count }, (_, i) => ({
    seed: seed + BigInt(i),
    label: !classes ? null : label === "each" ? i % classes : fixed,
  }));
  const link = new URLSearchParams({ graph: graph.name, ...(classes && { label }), seed, images: count });
  history.replaceState(null, "", `?${link}`);
  return { graph, jobs };
}

function tile({ seed, label }) {
  const canvas = Object.assign(document.createElement("canvas"), { width: facts.image.width, height: facts.image.height });
  const name = `${facts.classes ? `${label === null ? "no class" : called(label)} · ` : ""}seed ${seed}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  const figure = document.createElement("figure");
  figure.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: name }));
  return { figure, canvas };
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

async function generate() {
  const { graph, jobs } = readForm();
  if (!opened.has(graph.name)) opened.set(graph.name, await openSampler(runtime, facts, graph, loading));
  const sample = opened.get(graph.name);
  const tiles = jobs.map(tile);
  at("grid").replaceChildren(...tiles.map((t) => t.figure));
  const latencies = [];
  for (const [i, { seed, label }] of jobs.entries()) {
    if (stopped) break;
    const { pixels, latency } = await sample(seed, label);
    tiles[i].canvas.getContext("2d").putImageData(new ImageData(pixels, facts.image.width), 0, 0);
    latencies.push(latency);
    advance(i + 1, jobs.length);
    say(`${i + 1} of ${jobs.length} images, ${median(latencies).toFixed(1)} ms each`);
    await new Promise((next) => setTimeout(next)); // lets the page draw and Stop be pressed
  }
  if (!latencies.length) return say("Stopped");
  const threads = runtime.env.wasm.numThreads;
  const all = latencies.reduce((a, b) => a + b, 0) / 1e3;
  say(
    `${latencies.length} image${latencies.length > 1 ? "s" : ""}, ${median(latencies).toFixed(1)} ms each (median), ` +
      `${all.toFixed(2)} s in all, ${threads} thread${threads > 1 ? "s" : ""}`,
  );
}

/** One run at a time; pressing the button again stops it. */
async function run() {
  if (running) return void (stopped = true);
  [running, stopped] = [true, false];
  at("generate").textContent = "Stop";
  try {
    await generate();
  } catch (error) {
    say(error.message, true);
  }
  at("progress").classList.add("done");
  at("generate").textContent = "Generate";
  running = false;
}

async function start() {
  facts = await readFacts();
  describe();
  fillForm();
  runtime = await openRuntime(facts, loading);
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  at("next").addEventListener("click", () => {
    at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    if (!running && at("form").reportValidity()) run();
  });
  at("generate").disabled = at("next").disabled = false;
  await run();
}

start().catch((error) => {
  at("progress").classList.add("done");
  say(`This page could not start: ${error.message}`, true);
});
