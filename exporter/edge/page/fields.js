// A field for every input of a model, made from its description in facts.json: what has finitely many values is chosen, numbers
// are typed as JSON.

const ZEROS = 256; // numbers that a field is filled with, to begin with

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };
const size = (shape) => shape.reduce((a, b) => a * b, 1);
const zeros = ([length, ...inner]) => Array.from({ length }, () => (inner.length ? zeros(inner) : 0));

/** An array of an input's type, every number of it the same. */
const full = ({ dtype, shape }, number) => new ARRAYS[dtype](size(shape)).fill(dtype === "int64" ? BigInt(number) : number);

/** {input, element, asked, value(i), called(i)}: of sample i the value as a typed array, and what it is called, "" for no name. */
export function field(input) {
  const { asked, value, called } = input.choices === null ? typed(input) : chosen(input);
  asked.id = `input-${input.name}`;
  asked.title = input.meaning;
  const element = document.createElement("label");
  element.append(`${input.name[0].toUpperCase()}${input.name.slice(1).replaceAll("_", " ")} `, asked);
  return { input, element, asked, value, called };
}

function chosen(input) {
  const asked = document.createElement("select");
  const name = (choice) => input.names[choice] ?? `${choice}`;
  const each = Array.from({ length: input.choices }, (_, choice) => [choice, name(choice)]);
  const none = input.none === null ? [] : [["none", "none"]];
  asked.append(...[["each", "each in turn"], ...none, ...each].map(([value, text]) => new Option(text, value)));
  const number = (i) => (asked.value === "each" ? i % input.choices : asked.value === "none" ? input.none : Number(asked.value));
  const called = (i) => (asked.value === "none" ? `no ${input.name}` : name(number(i)));
  return { asked, value: (i) => full(input, number(i)), called };
}

function typed(input) {
  const asked = document.createElement("textarea");
  const wanted = `${input.shape.join("×") || 1} number${size(input.shape) === 1 ? "" : "s"} as JSON`;
  if (size(input.shape) <= ZEROS && input.none === null) asked.value = JSON.stringify(input.shape.length ? zeros(input.shape) : 0);
  Object.assign(asked, { rows: 2, required: input.none === null });
  asked.placeholder = `${wanted}${input.none === null ? "" : ", or nothing for none"}`;
  const read = (text) => {
    if (text === "" && input.none !== null) return full(input, input.none);
    const numbers = parsed(text);
    if (numbers.length !== size(input.shape) || !numbers.every(Number.isFinite)) throw new Error(`${input.name} is ${wanted}`);
    return ARRAYS[input.dtype].from(numbers);
  };
  let known = {}; // the same for all samples, and maybe long
  const value = () => {
    const text = asked.value.trim();
    if (known.text !== text) known = { text, array: read(text) };
    return known.array;
  };
  return { asked, value, called: () => "" };
}

/** The numbers of a text in their order, whatever lists they stand in; none where it is no JSON. */
function parsed(text) {
  try {
    return [JSON.parse(text)].flat(Infinity);
  } catch {
    return [];
  }
}
