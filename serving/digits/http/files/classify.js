// Send a picture, by file, drop, paste or camera, to a model, and show its most probable classes.
"use strict";

const byId = (id) => document.getElementById(id);
const canvas = byId("canvas"), context = canvas.getContext("2d");
const percent = (share) => (share > 0.999 ? "> 99.9 %" : (100 * share).toFixed(1) + " %");
let picture = null, asked = 0; // the file; the number of the newest request, whose answer counts

function show(text, remark, isWarning = false, classes = []) {
  byId("answer").textContent = text;
  byId("note").textContent = remark;
  byId("note").classList.toggle("warn", isWarning);
  byId("bars").replaceChildren(...classes.map(({ label, probability }, place) => {
    const row = document.createElement("li"), name = document.createElement("span");
    const bar = document.createElement("meter"), share = document.createElement("span");
    row.className = place ? "" : "first";
    name.textContent = label;
    bar.value = probability;
    bar.setAttribute("aria-label", `probability of ${label}`);
    share.textContent = percent(probability);
    row.append(name, bar, share);
    return row;
  }));
}

async function ask() {
  if (!picture) return;
  const number = ++asked, form = new FormData(); // of its files, one that can't be read is an answer, too
  form.append("picture", picture);
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: "Bearer " + token } : {};
  try {
    const started = performance.now();
    const response = await fetch(byId("model").value, { method: "POST", body: form, headers });
    const content = await response.json();
    if (number !== asked) return;
    byId("access").hidden = response.status !== 401;
    if (!response.ok) return show("", content.detail || response.statusText, true);
    const { error, label, probability, probabilities } = content.pictures[0];
    if (error) return show("", error, true);
    const took = (performance.now() - started).toFixed(0);
    show(label, `${percent(probability)} sure · ${took} ms`, false, probabilities);
  } catch {
    if (number === asked) show("", "The server does not answer. Is it still running?", true);
  }
}

async function take(blob) {
  if (!blob) return;
  picture = blob;
  ask();
  context.clearRect(0, 0, canvas.width, canvas.height);
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
    const width = bitmap.width * scale, height = bitmap.height * scale;
    context.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  } catch { /* the server reads more kinds than this browser */ }
}

for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = "";
  });
}
for (const name of ["dragover", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
byId("model").addEventListener("change", ask);
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value);
  ask();
});
fetch("openapi.json").then((response) => response.json()).then(({ paths }) => {
  const models = Object.keys(paths).filter((path) => path.endsWith("/classify"));
  byId("model").replaceChildren(...models.map((path) => new Option(decodeURIComponent(path.split("/")[3]), path)));
});
