// The playground: one or two samplers of a model, from the same seeds.

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

function show() {
  const { name, version, width, height, condition, classes, names, plans } = model();
  at("name").textContent = name;
  at("about").textContent = `${width}×${height} images, version ${version}`;
  const samplers = plans.map((plan) => [plan.name, `${plan.name}, ${plan.calls} call${plan.calls === 1 ? "" : "s"}`]);
  fill(at("first"), samplers);
  fill(at("second"), [["", "nothing"], ...samplers]);
  at("first").value = model().default;
  at("label-field").hidden = condition !== "labels";
  fill(at("label"), [["", "each in turn"], ...Array.from({ length: classes }, (_, i) => [`${i}`, names[i] ?? `${i}`])]);
  at("facts").replaceChildren(...plans.map((plan) => {
    const line = document.createElement("p");
    line.textContent = `${plan.name}: ${plan.solver}; ${plan.precision} on ${plan.backend}`;
    return line;
  }));
}

// A seed may be larger than JavaScript's exact numbers: it goes into the JSON as it was typed.
function request(plan) {
  const { name, condition, classes } = model();
  const images = Number(at("images").value);
  const chosen = at("label").value;
  const labels = Array.from({ length: images }, (_, i) => (chosen === "" ? i % classes : Number(chosen)));
  const asked = { model: name, plan, images, scale: 2, ...(condition === "labels" ? { labels } : {}) };
  return JSON.stringify(asked).replace(/}$/, `,"seed":${BigInt(at("seed").value)}}`);
}

async function picture(plan) {
  const begin = performance.now();
  const response = await ask("generate", { method: "POST", body: request(plan) });
  const image = document.createElement("img");
  image.src = URL.createObjectURL(await response.blob());
  image.alt = `images of ${plan}`;
  await image.decode();
  const made = Number(response.headers.get("X-Latency-Ms")).toFixed(1);
  const caption = document.createElement("figcaption");
  const title = document.createElement("strong");
  title.textContent = plan;
  caption.append(title, `${made} ms on the server, ${(performance.now() - begin).toFixed(0)} ms until shown`);
  const figure = document.createElement("figure");
  figure.append(caption, image);
  return figure;
}

async function generate() {
  at("generate").disabled = at("next").disabled = true;
  say("Generating");
  try {
    const figures = [];
    // One after the other, so that neither latency holds the other's work.
    for (const plan of [at("first").value, at("second").value]) if (plan) figures.push(await picture(plan));
    for (const image of document.querySelectorAll("#results img")) URL.revokeObjectURL(image.src);
    at("results").replaceChildren(...figures);
    say(`${at("images").value} image${at("images").value === "1" ? "" : "s"} from seed ${at("seed").value}`);
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
  at("seed").value = `${BigInt(at("seed").value) + BigInt(at("images").value)}`;
  generate();
});
start().catch((error) => {
  say(error.message, true);
  at("generate").disabled = false;
});
