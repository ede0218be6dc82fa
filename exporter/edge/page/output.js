// What a model gives, on the page: a picture on a canvas, or a table of the first numbers with all of them to save.

const ROWS = 50; // of a table

const element = (kind, ...parts) => {
  const made = document.createElement(kind);
  made.append(...parts);
  return made;
};

/** {figure, draw(data)} for one sample; output: its description in facts.json, name: what it is called. */
export function shown(output, name) {
  const { place, draw } = output.pictures ? picture(output, name) : numbers(output, name);
  return { figure: element("figure", place, element("figcaption", name)), draw };
}

/** Grey, or red, green and blue; a second or fourth channel is opacity. */
function picture({ shape: [height, width, channels] }, name) {
  const place = Object.assign(document.createElement("canvas"), { width, height });
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", name);
  const colors = channels < 3 ? [0, 0, 0] : [0, 1, 2];
  const draw = (data) => {
    const pixels = new Uint8ClampedArray(4 * width * height).fill(255);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) pixels[4 * i + c] = data[i * channels + colors[c]];
      if (channels % 2 === 0) pixels[4 * i + 3] = data[(i + 1) * channels - 1];
    }
    place.getContext("2d").putImageData(new ImageData(pixels, width), 0, 0);
  };
  return { place, draw };
}

function numbers({ name: tensor, dtype, shape, axes, columns }, name) {
  const place = element("div");
  place.className = "numbers";
  const inner = shape.slice(0, -1);
  const draw = (data) => {
    const rows = data.length / columns.length;
    const head = element("tr", ...[...axes, ...columns].map((text) => element("th", text)));
    const body = Array.from({ length: Math.min(rows, ROWS) }, (_, row) => {
      const values = Array.from(data.slice(row * columns.length, (row + 1) * columns.length), (x) => `${Number(x.toPrecision(5))}`);
      return element("tr", ...at(row, inner).map((i) => element("th", `${i}`)), ...values.map((x) => element("td", x)));
    });
    const all = rows > ROWS ? `the first ${ROWS} of ${rows} rows` : `${rows} row${rows === 1 ? "" : "s"}`;
    const save = element("a", "save all");
    save.href = URL.createObjectURL(npy(data, dtype, shape));
    save.download = `${name.replaceAll(/[^\w]+/g, "-")}.${tensor}.npy`;
    place.replaceChildren(element("table", element("thead", head), element("tbody", ...body)), element("p", `${all}, `, save));
  };
  return { place, draw };
}

/** The place of a row on every axis. */
function at(row, axes) {
  const place = [];
  for (const length of axes.toReversed()) {
    place.unshift(row % length);
    row = Math.floor(row / length);
  }
  return place;
}

/** A file as numpy.save writes it. */
function npy(data, dtype, shape) {
  const about = `{'descr': '${{ float32: "<f4", uint8: "|u1" }[dtype]}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const text = `${about.padEnd(Math.ceil((about.length + 11) / 64) * 64 - 11)}\n`; // the numbers begin at a multiple of 64
  const start = new Uint8Array([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, text.length & 0xff, text.length >> 8]);
  return new Blob([start, text, data]);
}
