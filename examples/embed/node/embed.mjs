// Images from a bundle in Node, written as PGM or PPM, one below the other.
//
//   npm install --ignore-scripts    (the script would download what only GPUs need)
//   node embed.mjs digits.bundle 3,1,4 digits.pgm [noise.f32]

import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";

/** The path of the default plan's fp32 graph, its files held to their hashes, and what its images are made from. */
function openBundle(bundle) {
  const manifest = join(bundle, "bundle.json");
  if (!existsSync(manifest)) throw new Error(`${bundle} is not a bundle: it has no bundle.json`);
  const { default: plan, graphs, files, signature } = JSON.parse(readFileSync(manifest, "utf8"));
  const graph = Object.values(graphs).find((g) => g.plan === plan && g.precision === "fp32" && g.layout !== "step");
  const [input] = signature.inputs;
  if (!graph || input?.kind !== "label") throw new Error(`${bundle} has no fp32 graph that takes labels`);
  for (const name of [graph.file, ...graph.data]) {
    const sha256 = createHash("sha256").update(readFileSync(join(bundle, name))).digest("hex");
    if (sha256 !== files[name].sha256) throw new Error(`${bundle}/${name} does not match its sha256; copy it again`);
  }
  return { graph: join(bundle, graph.file), input };
}

function parseLabels(text, { classes, names = [] }) {
  const labels = text.split(",").map((label) => (names.includes(label) ? `${names.indexOf(label)}` : label));
  const known = (label) => /^\d+$/.test(label) && Number(label) < classes;
  if (!labels.every(known)) throw new Error(`labels are names or whole numbers below ${classes} such as 3,1,4, got ${text}`);
  return BigInt64Array.from(labels, BigInt);
}

/** A unit-normal draw. Box and Muller 1958. */
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

function readNoise(path, count) {
  const bytes = Uint8Array.from(readFileSync(path)); // a copy, which begins where a float may
  if (bytes.length !== 4 * count) throw new Error(`${path} does not hold ${count} floats`);
  return new Float32Array(bytes.buffer);
}

async function main(bundle, text, out, noiseFile) {
  if (!out) throw new Error("usage: node embed.mjs BUNDLE LABELS IMAGES [NOISE]");
  const { graph, input } = openBundle(bundle);
  const labels = parseLabels(text, input);
  const session = await InferenceSession.create(graph);
  const shape = [labels.length, ...session.inputMetadata[0].shape.slice(1)]; // (B, draws, C, H, W)
  const count = shape.reduce((a, b) => a * b);
  const noise = noiseFile ? readNoise(noiseFile, count) : Float32Array.from({ length: count }, normal);
  const feeds = { noise: new Tensor("float32", noise, shape), [input.name]: new Tensor("int64", labels, [labels.length]) };
  const { images } = await session.run(feeds, ["images"]);
  const [batch, height, width, channels] = images.dims;
  const header = `${channels === 1 ? "P5" : "P6"} ${width} ${batch * height} 255\n`;
  writeFileSync(out, Buffer.concat([Buffer.from(header), images.data]));
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(`embed: ${error.message}`);
  process.exitCode = 2;
});
