// The page of scripts/serve.py: an input, and what the model predicts of it.

const at = (id) => document.getElementById(id);
const made = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
let model = null, picture = null;

function say(text, bad = false) {
  at("state").textContent = text;
  at("state").classList.toggle("bad", bad);
}

async function ask(path, request = {}) {
  const token = at("token").value;
  const headers = { ...request.headers, ...(token && { authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...request, headers });
  const value = await response.json();
  if (response.status === 401) at("token-row").hidden = false;
  if (!response.ok) throw new Error(value.error);
  return value;
}

async function begin() {
  model = await ask("model");
  document.title = at("name").textContent = model.name;
  at("drop").hidden = model.inputs === "texts";
  if (model.inputs !== "pictures") {
    const labelled = model.columns.length - model.optional.length > 1;
    const columns = labelled ? model.columns : [""];
    at("texts").replaceChildren(...columns.map((name) =>
      made("label", {}, name, made("textarea", { name, spellcheck: false }))));
  }
  at("options").replaceChildren(...Object.entries(model.options).map(([name, [value, meaning]]) =>
    made("label", { title: meaning }, `${name} `,
      made("input", { name, placeholder: value ?? "" }))));
  say("");
}

const options = () => Object.fromEntries([...at("options").querySelectorAll("input")]
  .filter((input) => input.value !== "").map((input) => [input.name, Number(input.value)]));

function predicted() {
  const areas = [...at("texts").querySelectorAll("textarea")];
  const written = areas.some((area) => area.value.trim());
  if (model.inputs === "pictures" || (model.inputs === "both" && !written)) {
    if (!picture) throw new Error("choose a picture first");
    const query = new URLSearchParams(options());
    const headers = { "content-type": "application/octet-stream" };
    return ask(`predict?${query}`, { method: "POST", headers, body: picture });
  }
  const named = Object.fromEntries(areas.map((area) => [area.name, area.value]));
  const inputs = [areas.length > 1 ? named : areas[0].value];
  const headers = { "content-type": "application/json" };
  return ask("predict", { method: "POST", headers, body: JSON.stringify({ inputs, ...options() }) });
}

async function send() {
  const began = performance.now();
  say("…");
  try {
    if (!model) return await begin();
    const { results: [result] } = await predicted();
    at("answer").replaceChildren(...shown(result));
    say(`${Math.round(performance.now() - began)} ms`);
  } catch (error) {
    at("answer").replaceChildren();
    say(error.message, true);
  }
}

// ------------------------------------------------------------------------------------- answers

function bar(name, share) {
  const fill = made("i");
  fill.style.width = `${100 * share}%`;
  const output = made("output", { textContent: `${(100 * share).toFixed(1)}%` });
  return made("div", { className: "row" }, made("span", { textContent: name }),
    made("div", { className: "bar" }, fill), output);
}

function shown({ probabilities, masks, text, ...rest }) {
  const parts = [];
  if (text !== undefined) parts.push(made("pre", { textContent: text }));
  // An object's keys that are numbers come first, in their order.
  const shares = Object.entries(probabilities ?? {}).sort(([, a], [, b]) => b - a);
  for (const [name, share] of shares) parts.push(bar(name, share));
  (masks ?? []).forEach((guesses, i) => {
    parts.push(made("h2", { textContent: `mask ${i + 1}` }));
    for (const { token, probability } of guesses) parts.push(bar(token, probability));
  });
  if (probabilities) for (const name of ["class", "probability"]) delete rest[name];
  if (Object.keys(rest).length) {
    parts.push(made("pre", { textContent: JSON.stringify(rest, null, 1) }));
  }
  return parts;
}

// -------------------------------------------------------------------------------------- inputs

function choose(file) {
  if (!file) return;
  picture = file;
  for (const area of at("texts").querySelectorAll("textarea")) area.value = "";
  URL.revokeObjectURL(at("shown").src);
  at("shown").src = URL.createObjectURL(file);
  at("shown").hidden = false;
  send();
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
});
at("file").addEventListener("change", (event) => choose(event.target.files[0]));
at("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  if (model && model.inputs !== "texts") choose(event.clipboardData.files[0]);
});
begin().catch((error) => say(error.message, true));
