// The page: a form, a grid, a status line. Whatever comes from the bundle is put in as text, never as markup.

import { field } from "./fields.js";
import { MAX_SEED } from "./noise.js";
import { shown } from "./output.js";
import { openRuntime, openSampler, readFacts } from "./sampler.js";

const at = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const LINKED = 500; // characters of a field that go into a link
const opened = new Map();
let facts, runtime, fields, noun, running = false, stopped = false;

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

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const chosen = () => facts.graphs.find(({ name }) => name === at("graph").value);

function describe() {
  const { name, inputs, output, graphs, ort } = facts;
  noun = output.pictures ? "image" : "sample";
  document.title = at("name").textContent = name;
  const calls = [...new Set(graphs.map((g) => g.nfe))].sort((a, b) => a - b).join(" or ");
  const made = output.pictures ? `${output.shape[1]}×${output.shape[0]} images` : `Samples (${output.about})`;
  at("about").textContent = `${made} from ${calls} network call${calls === "1" ? "" : "s"} each, made in this tab.`;
  const precise = new Set(graphs.map((g) => g.precision)).size > 1;
  const title = (g) => `${g.plan}: ${plural(g.nfe, "call")}${precise ? `, ${g.precision}` : ""}`;
  options(at("graph"), graphs.map((g) => [g.name, title(g)]));
  at("graph-field").hidden = graphs.length === 1;
  fields = inputs.map(field);
  at("inputs").replaceChildren(...fields.map(({ element }) => element));
  at("noun").textContent = output.pictures ? "Images" : "Samples";
  at("grid").style.setProperty("--tile", output.pictures ? `${Math.max(80, Math.min(output.shape[1], 320))}px` : "16rem");
  const line = (text) => Object.assign(document.createElement("p"), { textContent: text });
  const sizes = graphs.map((g) => `${g.name} ${megabytes(g.bytes)}`).join(", ");
  at("facts").replaceChildren(
    line(`Graph: ${sizes}. Runtime: onnxruntime-web ${ort.version}, ${megabytes(ort.wasm.bytes)} before compression.`),
    line(`Nothing leaves this browser. The same seed and inputs give the same ${noun} in Python with fewstep.`),
  );
}

/** Fields that the chosen graph does not take are put away. */
function showTaken() {
  const { takes } = chosen();
  for (const { input, element, asked } of fields) element.hidden = asked.disabled = !takes.includes(input.name);
}

/** What a link says, by the names it says it under. */
const settings = () => [
  ["graph", at("graph")],
  ...fields.filter(({ asked }) => !asked.disabled).map(({ input, asked }) => [input.name, asked]),
  ["seed", at("seed")],
  ["samples", at("samples")],
];

function fillForm() {
  const given = new URLSearchParams(location.search);
  const fill = ([name, asked]) => {
    const before = asked.value;
    if (given.has(name)) asked.value = given.get(name);
    if (!asked.checkValidity() || asked.value === "") asked.value = before;
  };
  fill(["graph", at("graph")]);
  showTaken();
  settings().forEach(fill);
}

function readForm() {
  const seed = BigInt(at("seed").value);
  const count = Number(at("samples").value);
  if (seed + BigInt(count - 1) > MAX_SEED) throw new Error(`the last seed may be ${MAX_SEED}; choose a smaller one`);
  const taken = fields.filter(({ asked }) => !asked.disabled);
  const jobs = Array.from({ length: count }, (_, i) => ({
    seed: seed + BigInt(i),
    given: Object.fromEntries(taken.map(({ input, value }) => [input.name, value(i)])),
    name: [...taken.map(({ called }) => called(i)).filter(Boolean), `seed ${seed + BigInt(i)}`].join(" · "),
  }));
  const short = settings().map(([name, asked]) => [name, asked.value]).filter(([, text]) => text.length <= LINKED);
  history.replaceState(null, "", `?${new URLSearchParams(short)}`);
  return { graph: chosen(), jobs };
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

async function generate() {
  const { graph, jobs } = readForm();
  if (!opened.has(graph.name)) opened.set(graph.name, await openSampler(runtime, facts, graph, loading));
  const sample = opened.get(graph.name);
  for (const link of document.querySelectorAll("#grid a")) URL.revokeObjectURL(link.href);
  const tiles = jobs.map(({ name }) => shown(facts.output, name));
  at("grid").replaceChildren(...tiles.map((t) => t.figure));
  const latencies = [];
  for (const [i, { seed, given }] of jobs.entries()) {
    if (stopped) break;
    const { data, latency } = await sample(seed, given);
    tiles[i].draw(data);
    latencies.push(latency);
    advance(i + 1, jobs.length);
    say(`${i + 1} of ${jobs.length} ${noun}s, ${median(latencies).toFixed(1)} ms each`);
    await new Promise((next) => setTimeout(next)); // lets the page draw and Stop be pressed
  }
  if (!latencies.length) return say("Stopped");
  const threads = runtime.env.wasm.numThreads;
  const all = latencies.reduce((a, b) => a + b, 0) / 1e3;
  say(
    `${plural(latencies.length, noun)}, ${median(latencies).toFixed(1)} ms each (median), ` +
      `${all.toFixed(2)} s in all, ${plural(threads, "thread")}`,
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
  at("graph").addEventListener("change", showTaken);
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
