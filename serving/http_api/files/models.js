// The models of this server, and a form that sends a request to each. All names come from models, so
// they are set as texts, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const made = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });
const isText = (content) => content === "text" || content === "json";
const copyOf = (id) => byId(id).content.firstElementChild.cloneNode(true);
const MOST = 4000, TOP = 5; // characters of an answer and classes that are shown
const MOST_AS_JSON = 1 << 18; // values of an output
const SIZES = { BOOL: 1, 8: 1, 16: 2, 32: 4, 64: 8 };
const bytesOf = (datatype) => SIZES[datatype] || SIZES[/\d+$/.exec(datatype)];
const product = (sizes) => sizes.reduce((all, size) => all * size, 1);

async function ask(url, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: "Bearer " + token } : {}) };
  const response = await fetch(url, { ...options, headers }).catch(() => {
    throw new Error("The server does not answer. Is it still running?");
  });
  byId("access").hidden = response.status !== 401;
  const length = response.headers.get("inference-header-content-length"); // of the JSON, if bytes follow
  const body = length && (await response.arrayBuffer()).slice(0, length);
  const content = length ? JSON.parse(new TextDecoder().decode(body)) : await response.json();
  if (!response.ok) throw new Error(content.detail || response.statusText);
  return content;
}

async function list() {
  try {
    const { models } = await ask("v2/models");
    byId("note").textContent = models.length ? "" : "This server has no model now.";
    byId("models").replaceChildren(...models.map(sectionOf));
    const first = byId("models").querySelector("details");
    if (first) first.open = true;
  } catch (error) {
    byId("note").textContent = error.message;
  }
}

function sectionOf(model) {
  const section = copyOf("model"), find = (selector) => section.querySelector(selector);
  find("h2").textContent = model.name;
  const words = [model.version && "version " + model.version, ...model.roles, model.state.toLowerCase()];
  find(".state").textContent = words.filter(Boolean).join(" · ");
  find(".state").classList.toggle("warn", model.state !== "READY");
  find(".batching").textContent = model.reason || `${model.batching} · ${model.device}, ${model.optimized || model.precision}`;
  if (!model.inputs) {
    section.querySelectorAll(".sides, h3").forEach((each) => each.remove());
    return section;
  }
  for (const side of ["inputs", "outputs"]) {
    find("." + side).replaceChildren(...model[side].map(({ name, datatype, axes }) => {
      const row = made("li");
      row.append(made("code", name), ` ${datatype} [${axes.join(", ")}]`);
      return row;
    }));
  }
  if (model.classes.length) {
    const more = model.classes.length > 20 ? `, … (${model.classes.length})` : "";
    find(".classes").textContent = "Classes: " + model.classes.slice(0, 20).join(", ") + more;
  }
  for (const [client, lines] of Object.entries(model.requests)) {
    const part = made("details"), code = made("pre", lines);
    code.tabIndex = 0;
    part.append(made("summary", client), code);
    part.open = client === Object.keys(model.requests)[0];
    find(".requests").append(part);
  }
  find(".picture").hidden = !model.takes_pictures;
  find("form button").before(...model.inputs.map((input) => {
    const field = copyOf("input"), text = field.querySelector("textarea");
    field.querySelector("legend").textContent = `${input.name} ${input.datatype} [${input.axes.join(", ")}]`;
    text.setAttribute("aria-label", input.name);
    if (input.content) {
      fitTo(input.content, field, text);
      return field;
    }
    text.value = input.sample === null ? "" : JSON.stringify(input.sample);
    text.placeholder = `nothing: zeros, ${input.shape.join(" × ")}`;
    return field;
  }));
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send(model, find("form"));
  });
  return section;
}

// The field of a handler's input: a text, or a file that may be dropped or pasted.
function fitTo(content, field, text) {
  const file = field.querySelector("input");
  if (isText(content)) {
    text.placeholder = "a text";
    field.querySelector("label").hidden = true;
    return;
  }
  text.hidden = true;
  field.querySelector("span").textContent = content === "picture" ? "A picture: choose, drop or paste it" : "A file: choose or drop it";
  if (content === "picture") file.accept = "image/*";
  const take = (event, { files }) => {
    event.preventDefault();
    if (files.length) file.files = files;
  };
  field.tabIndex = 0; // so that it can be pasted into
  field.addEventListener("dragover", (event) => event.preventDefault());
  field.addEventListener("drop", (event) => take(event, event.dataTransfer));
  field.addEventListener("paste", (event) => take(event, event.clipboardData));
}

async function send(model, form) {
  const note = form.querySelector(".note"), answer = form.querySelector(".answer");
  const bars = form.querySelector(".bars"), [picture] = form.querySelector(".picture input").files;
  note.textContent = "";
  bars.replaceChildren();
  form.querySelector(".texts").textContent = "";
  answer.hidden = true;
  try {
    const started = performance.now();
    const show = (part) => {
      form.querySelector(".texts").textContent += textsOf(model, part) + "\n";
    };
    const content = await (picture ? classified(model, picture)
      : model.in_parts ? streamed(model, form, show) : inferred(model, form));
    note.textContent = `${(performance.now() - started).toFixed(0)} ms`;
    bars.replaceChildren(...barsOf(model, content));
    if (!model.in_parts) form.querySelector(".texts").textContent = textsOf(model, content);
    const text = content.pictures ? JSON.stringify(content.pictures[0], null, 1)
      : content.outputs.map((each) => `${each.name} ${each.datatype} [${each.shape.join(", ")}]\n`
        + (each.data ? JSON.stringify(each.data) : "too many to show")).join("\n");
    answer.textContent = text.length > MOST ? text.slice(0, MOST) + " …" : text;
    answer.hidden = false;
    note.classList.remove("warn");
  } catch (error) {
    note.textContent = error.message;
    note.classList.add("warn");
  }
}

async function classified({ name, version }, picture) {
  const form = new FormData();
  form.append("picture", picture);
  const url = `v1/models/${encodeURIComponent(name)}/versions/${version}/classify?top=${TOP}`;
  const content = await ask(url, { method: "POST", body: form });
  if (content.pictures[0].error) throw new Error(content.pictures[0].error);
  return content;
}

// The parts of an answer, each shown as it comes; returns the last one.
async function streamed({ name, version, inputs, outputs }, form, show) {
  const fields = [...form.querySelectorAll("fieldset")], values = {};
  for (const [number, input] of inputs.entries()) {
    const text = fields[number].querySelector("textarea").value;
    const [file] = fields[number].querySelector("input").files;
    values[input.name] = isText(input.content) ? text : file ? await base64Of(file)
      : text.trim() ? (fromText(input, text).data) : input.sample;
  }
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const url = `v2/models/${encodeURIComponent(name)}/versions/${version}/generate_stream`;
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(values) });
  byId("access").hidden = response.status !== 401;
  if (!response.ok) throw new Error((await response.json()).detail || response.statusText);
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", last = { outputs: [] };
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    const events = (rest + decoder.decode(step.value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const part = JSON.parse(event.slice("data: ".length));
      if (part.error) throw new Error(part.error);
      last = { outputs: outputs.map(({ name: output, datatype }) => {
        const data = Array.isArray(part[output]) ? part[output].flat(Infinity) : [part[output]];
        return { name: output, datatype, shape: sizesOf(part[output]), data };
      }) };
      show(last);
    }
  }
  return last;
}

function sizesOf(value) {
  const sizes = [];
  for (let each = value; Array.isArray(each); [each] = each) sizes.push(each.length);
  return sizes.length ? sizes : [1];
}

async function base64Of(file) {
  let text = "";
  for (const byte of new Uint8Array(await file.arrayBuffer())) text += String.fromCharCode(byte);
  return btoa(text);
}

async function inferred({ name, version, inputs, outputs }, form) {
  const fields = [...form.querySelectorAll("fieldset")], parts = [];
  const tensors = await Promise.all(inputs.map(async (input, number) => {
    const text = fields[number].querySelector("textarea").value;
    const [file] = fields[number].querySelector("input").files;
    const tensor = await (input.content ? fromField(input, text, file)
      : file ? fromFile(input, file) : fromText(input, text));
    return { name: input.name, datatype: input.datatype, ...tensor };
  }));
  for (const tensor of tensors) {
    if (!tensor.bytes) continue;
    parts.push(tensor.bytes);
    tensor.parameters = { binary_data_size: tensor.bytes.byteLength };
    delete tensor.bytes;
  }
  const isLarge = outputs.some(({ axes }) => product(axes.map(Number).filter(Boolean)) > MOST_AS_JSON);
  const options = isLarge ? { parameters: { binary_data_output: true } } : {};
  const head = new TextEncoder().encode(JSON.stringify({ inputs: tensors, ...options }));
  const headers = parts.length ? { "Inference-Header-Content-Length": String(head.length) } : {};
  const url = `v2/models/${encodeURIComponent(name)}/versions/${version}/infer`;
  return ask(url, { method: "POST", headers, body: new Blob([head, ...parts]) });
}

// One row of a handler's input: a text as it stands, or a file behind its length.
async function fromField({ name, content }, text, file) {
  if (isText(content)) return { shape: [1], data: [text] };
  if (!file) throw new Error(`${name}: choose a ${content === "picture" ? "picture" : "file"} first`);
  const bytes = new Uint8Array(4 + file.size);
  new DataView(bytes.buffer).setUint32(0, file.size, true);
  bytes.set(new Uint8Array(await file.arrayBuffer()), 4);
  return { shape: [1], bytes: bytes.buffer };
}

// The texts of a handler's answer, by their names.
function textsOf({ outputs: known }, { outputs }) {
  const texts = known.filter(({ content }) => isText(content)).map(({ name }) => name);
  return (outputs || []).filter(({ name, data }) => texts.includes(name) && data)
    .map(({ name, data }) => `${name}: ${data.join(", ")}`).join("\n");
}

// Numbers in brackets or without, or a text; nothing is zeros, or empty texts: a length of 0 each.
function fromText({ datatype, shape }, text) {
  if (!text.trim() && (datatype !== "BYTES" || product(shape) > 1)) {
    const size = datatype === "BYTES" ? 4 : bytesOf(datatype);
    return { shape, bytes: new ArrayBuffer(product(shape) * size) };
  }
  let value = text;
  for (const candidate of [text, `[${text}]`]) {
    try {
      value = JSON.parse(candidate);
      break;
    } catch { /* a text, or numbers without brackets */ }
  }
  if (datatype === "BYTES" && !Array.isArray(value)) value = text;
  const sizes = [];
  for (let each = value; Array.isArray(each); [each] = each) sizes.push(each.length);
  while (sizes.length < shape.length) sizes.unshift(1);
  return { shape: sizes, data: Array.isArray(value) ? value : [value] };
}

async function fromFile(input, file) {
  const buffer = await file.arrayBuffer(), view = new DataView(buffer);
  if (buffer.byteLength < 12 || view.getUint32(0) !== 0x934e554d) return fromText(input, await file.text());
  const isOld = view.getUint8(6) < 2, at = isOld ? 10 : 12; // NumPy's format, version 1 or later
  const end = at + (isOld ? view.getUint16(8, true) : view.getUint32(8, true));
  const head = new TextDecoder().decode(buffer.slice(at, end));
  const [, order, kind, size] = /'descr': '([<|>=])(\w)(\d+)'/.exec(head) || [];
  const shape = (/'shape': \(([^)]*)\)/.exec(head) || ["", ""])[1].split(",").filter((each) => each.trim()).map(Number);
  const datatype = { b: "BOOL", f: "FP", i: "INT", u: "UINT" }[kind] + (kind === "b" ? "" : 8 * size);
  if (order === ">" || !/'fortran_order': False/.test(head) || datatype !== input.datatype) {
    throw new Error(`${input.name}: expected an array of ${input.datatype} in C order, got ${head.trim()}`);
  }
  return { shape, bytes: buffer.slice(end) };
}

const areShares = (data) => data.every((each) => each >= 0 && each <= 1)
  && Math.abs(data.reduce((all, each) => all + each, 0) - 1) < 0.01;

function barsOf({ classes, inputs }, { outputs, pictures }) {
  let shares = pictures && pictures[0].probabilities;
  const isHandled = inputs.some(({ content }) => content);
  const rows = (outputs || []).find(({ shape, datatype, data }) => /^FP/.test(datatype)
    && shape.length === 2 && data && (classes.length ? shape[1] === classes.length
      : isHandled && shape[1] > 1 && areShares(data.slice(0, shape[1]))));
  if (rows) {
    shares = rows.data.slice(0, rows.shape[1])
      .map((probability, at) => ({ label: classes[at] || String(at), probability }));
    shares = shares.sort((one, other) => other.probability - one.probability).slice(0, TOP);
  }
  return (shares || []).map(({ label, probability }, place) => {
    const row = made("li"), bar = made("meter");
    row.className = place ? "" : "first";
    bar.value = probability;
    bar.setAttribute("aria-label", `probability of ${label}`);
    row.append(made("span", label), bar, made("span", Number(probability.toPrecision(3))));
    return row;
  });
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value);
  list();
});
list();
