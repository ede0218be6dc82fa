// Unit-normal noise that belongs to a seed: the same numbers as numpy.random.Generator(numpy.random.Philox(key=seed))
// .standard_normal(dtype=float32), so a seed gives the same image in Python and here.
// Philox4x64-10: Salmon et al. 2011. Ziggurat of 256 layers: Marsaglia and Tsang 2000, in the order of NumPy's C code.

const MASK = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];

const RIM = 3.6541528853610088; // where the ziggurat's tail begins
const AREA = 0.004928673233974658; // of each layer
const STEPS = 2 ** 23; // of the integer that places a draw in its layer

export const MAX_SEED = MASK;

/** The 32-bit words of a Philox stream: key = seed, counter from 1, each 64-bit word split low half first. */
function* words(seed) {
  for (let counter = 1n; ; counter += 1n) {
    let [a, b, c, d] = [counter, 0n, 0n, 0n];
    let [key0, key1] = [seed, 0n];
    for (let round = 0; round < 10; round++) {
      const p = MULTIPLIERS[0] * a;
      const q = MULTIPLIERS[1] * c;
      [a, b, c, d] = [(q >> 64n) ^ b ^ key0, q & MASK, (p >> 64n) ^ d ^ key1, p & MASK];
      key0 = (key0 + WEYL[0]) & MASK;
      key1 = (key1 + WEYL[1]) & MASK;
    }
    for (const word of [a, b, c, d]) {
      yield Number(word & 0xffffffffn);
      yield Number(word >> 32n);
    }
  }
}

/** The layers of the ziggurat: `inside` is what a draw must stay under, `width` scales it, `height` is the density. */
function layers() {
  const density = (x) => Math.exp(-0.5 * x * x);
  const edges = new Float64Array(256);
  edges[255] = RIM;
  for (let i = 254; i > 0; i--) {
    edges[i] = Math.sqrt(-2 * Math.log(AREA / edges[i + 1] + density(edges[i + 1])));
  }
  const base = AREA / density(RIM);
  const inside = Uint32Array.from(edges, (x, i) => Math.round(((i ? edges[i - 1] : RIM) / (i ? x : base)) * STEPS));
  const width = Float32Array.from(edges, (x, i) => (i ? x : base) / STEPS);
  const height = Float32Array.from(edges, density);
  return { inside, width, height };
}

const { inside, width, height } = layers();
const { fround } = Math;

/** Float32Array of `count` unit-normal draws. seed: a BigInt from 0 to MAX_SEED. */
export function noise(seed, count) {
  if (typeof seed !== "bigint" || seed < 0n || seed > MAX_SEED) {
    throw new RangeError(`a seed is a whole number from 0 to 2**64 - 1, got ${seed}`);
  }
  const stream = words(seed);
  const next = () => stream.next().value;
  const uniform = () => fround((next() >>> 8) / 2 ** 24);
  const draws = new Float32Array(count);
  for (let i = 0; i < count; i++) draws[i] = normal(next, uniform);
  return draws;
}

function normal(next, uniform) {
  for (;;) {
    const bits = next(); // 8 bits of layer, 1 of sign, 23 of place
    const layer = bits & 0xff;
    const place = bits >>> 9;
    const x = fround(place * width[layer]) * (bits & 0x100 ? -1 : 1);
    if (place < inside[layer]) return x;
    if (layer === 0) return tail(uniform) * ((place >>> 8) & 1 ? -1 : 1);
    const span = fround(height[layer - 1] - height[layer]);
    if (fround(fround(span * uniform()) + height[layer]) < Math.exp(-0.5 * x * x)) return x;
  }
}

/** A draw beyond the rim, in float32 step by step as NumPy takes it. */
function tail(uniform) {
  const log = () => fround(Math.log1p(-uniform()));
  for (;;) {
    const x = fround(fround(-fround(1 / RIM)) * log());
    const y = -log();
    if (fround(y + y) > fround(x * x)) return fround(fround(RIM) + x);
  }
}
