// One graph in onnxruntime-web: from a seed and inputs to an output. Knows nothing of the page.

import { noise } from "./noise.js";

/** facts.json, as exporter/web.py writes it. */
export async function readFacts() {
  const answer = await fetch("facts.json");
  if (!answer.ok) throw new Error(`facts.json is missing (${answer.status}); copy the whole folder to the server`);
  return answer.json();
}

/** A file's bytes. progress(done) counts them; with an integrity the browser hands them over at the end, checked. */
async function download(url, bytes, integrity, progress) {
  const answer = await fetch(url, integrity ? { integrity, credentials: "omit" } : {});
  if (!answer.ok) throw new Error(`${url} is missing (${answer.status}); copy the whole folder to the server`);
  const content = new Uint8Array(bytes);
  let done = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { value } = await reader.read();
    if (!value) break;
    if (done + value.length > bytes) throw new Error(`${url} has more than the ${bytes} bytes it was written with`);
    content.set(value, done);
    progress((done += value.length));
  }
  if (done !== bytes) throw new Error(`${url} has ${done} of its ${bytes} bytes; load the page again`);
  return content;
}

/** ONNX Runtime, its module and its WebAssembly both held to their hashes. */
export async function openRuntime({ ort }, progress) {
  progress(`ONNX Runtime ${ort.version}`, 0, ort.wasm.bytes);
  // The module cannot carry a hash here; the page's <link rel="modulepreload" integrity> has fetched and checked it.
  const runtime = await import(new URL(ort.base + ort.module.name, document.baseURI).href);
  const wasm = await download(ort.base + ort.wasm.name, ort.wasm.bytes, ort.wasm.integrity, () => {});
  runtime.env.wasm.wasmBinary = wasm.buffer;
  // Threads share memory, which browsers allow on cross-origin isolated pages alone.
  runtime.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  return runtime;
}

export async function openSampler(runtime, facts, graph, progress) {
  const report = (done) => progress(`the graph ${graph.name}`, done, graph.bytes);
  report(0);
  const session = await runtime.InferenceSession.create(await download(graph.file, graph.bytes, null, report));
  const shapes = Object.fromEntries(facts.inputs.map(({ name, shape }) => [name, shape]));
  const output = facts.output.name;

  /** {data: of one output, latency in ms}. seed: a BigInt; given: a typed array for every input that the graph takes, by name. */
  return async function sample(seed, given) {
    const tensor = (data, shape) => new runtime.Tensor(data instanceof BigInt64Array ? "int64" : "float32", data, [1, ...shape]);
    const feeds = { noise: tensor(noise(seed, graph.noise.reduce((a, b) => a * b)), graph.noise) };
    for (const name of graph.takes) feeds[name] = tensor(given[name], shapes[name]);
    const start = performance.now();
    const made = await session.run(feeds, [output]);
    const latency = performance.now() - start;
    return { data: made[output].data, latency };
  };
}
