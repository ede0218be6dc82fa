// One graph in onnxruntime-web: from a seed and a label to pixels. Knows nothing of the page.

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
  const { channels, height, width } = facts.image;

  /** {pixels: RGBA of one image, latency in ms}. seed: a BigInt; label: a number, or null for no class. */
  return async function sample(seed, label) {
    const dims = [1, ...graph.noise];
    const feeds = { noise: new runtime.Tensor("float32", noise(seed, dims.reduce((a, b) => a * b)), dims) };
    if (facts.classes) feeds.labels = new runtime.Tensor("int64", [BigInt(label ?? facts.classes)], [1]);
    const start = performance.now();
    const { images } = await session.run(feeds, ["images"]);
    const latency = performance.now() - start;
    const pixels = new Uint8ClampedArray(4 * width * height).fill(255);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) pixels[4 * i + c] = images.data[i * channels + Math.min(c, channels - 1)];
    }
    return { pixels, latency };
  };
}
