// Draw a digit and have it classified while drawing; or send a picture by file, drop, paste or camera.
"use strict";

const PEN = 28; // pixels of the canvas, 640 x 640
const SENT = 0.5; // scale of the drawing that is sent
const PATH = "v1/digits";
const EXAMPLE = "5,0 4,6 4,6 10,6|8,3 8,10"; // a 4, by points on the paper, 14 x 10
const SURE = 0.5; // the least probability of an answer that is not in doubt
const STEP = 20; // of the pen that the arrow keys move
const byId = (id) => document.getElementById(id);
const canvas = byId("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
const answerShown = byId("answer"), note = byId("note");

let strokes = [], stroke = null; // each a list of [x, y]; the one that the pointer draws
let picture = null; // an ImageBitmap and its blob, instead of strokes
let isAsking = false, isChanged = false; // whether a request is in progress, and out of date
let pen = null; // where the keyboard's pen is, and whether it is down

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawStrokes(target, colour, scale = 1) {
  target.strokeStyle = target.fillStyle = colour;
  target.lineWidth = PEN * scale;
  target.lineCap = target.lineJoin = "round";
  for (const points of strokes) {
    const at = (index) => (points[index] || points.at(-1)).map((side) => side * scale);
    target.beginPath();
    target.moveTo(...at(0));
    points.forEach((_, index) => {
      const [x, y] = at(index), [nextX, nextY] = at(index + 1);
      target.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
    });
    target.lineTo(at(points.length)[0] + 0.1, at(points.length)[1]);
    target.stroke();
  }
}

// Where a picture lies on the canvas, as large as it fits.
function placeOf(bitmap) {
  const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const width = bitmap.width * scale, height = bitmap.height * scale;
  return { left: (canvas.width - width) / 2, top: (canvas.height - height) / 2, width, height };
}

function repaint() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (picture) {
    const place = placeOf(picture.bitmap);
    context.drawImage(picture.bitmap, place.left, place.top, place.width, place.height);
  } else if (!strokes.length) {
    context.fillStyle = style("--quiet");
    context.textAlign = "center";
    context.font = "32px system-ui, sans-serif";
    context.fillText("Draw here", canvas.width / 2, canvas.height / 2);
    context.textAlign = "start";
  }
  drawStrokes(context, style("--ink"));
  context.strokeStyle = context.fillStyle = style("--accent");
  context.lineWidth = 2;
  if (pen) {
    context.beginPath();
    context.arc(pen.x, pen.y, PEN / 2 + 4, 0, 7);
    context.stroke();
    if (pen.isDown) context.fill();
  }
  byId("undo").disabled = !strokes.length;
  byId("clear").disabled = !strokes.length && !picture;
}

// What is sent: black ink on white paper, whatever the page's colours. Not by toBlob(), which
// Chromium runs in idle time: one in some thirty drawings waited for its callback for ever.
function drawing() {
  const copy = document.createElement("canvas");
  copy.width = canvas.width * SENT;
  copy.height = canvas.height * SENT;
  const target = copy.getContext("2d");
  target.fillStyle = "#fff";
  target.fillRect(0, 0, copy.width, copy.height);
  drawStrokes(target, "#000", SENT);
  const png = atob(copy.toDataURL("image/png").split(",")[1]);
  return new Blob([Uint8Array.from(png, (character) => character.charCodeAt(0))], { type: "image/png" });
}

// One request at a time: what changes meanwhile is asked once it is answered, never queued up.
async function ask() {
  isChanged = true;
  if (isAsking) return;
  isAsking = true;
  while (isChanged) {
    isChanged = false;
    await askOnce();
  }
  isAsking = false;
}

async function askOnce() {
  if (!strokes.length && !picture) return show("", "The answer appears here, while you draw.");
  try {
    const body = picture ? picture.blob : drawing();
    const started = performance.now();
    const answer = await answerTo(body);
    if (!answer) return;
    showAnswer(answer, `${(performance.now() - started).toFixed(0)} ms`);
    showCode(body);
  } catch {
    show("", "The server does not answer. Is it still running?", true);
  }
}

// Returns the answer; null, once it has shown why, if there is none.
async function answerTo(body) {
  const form = new FormData(); // of its files, one that can't be read is an answer, too
  form.append("picture", body);
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = "Bearer " + token;
  const options = "image&reject_below=" + SURE;
  const response = await fetch(`${PATH}?${options}`, { method: "POST", body: form, headers });
  const content = await response.json();
  byId("access").hidden = response.status !== 401;
  if (response.ok) return content;
  show("", content.detail || response.statusText, true);
  return null;
}

const confidence = (share, rejected, took) =>
  `${percent(share)}${rejected ? ": I am not sure" : " sure"} · ${took}`;
const percent = (share) => (share > 0.999 ? "> 99.9 %" : (100 * share).toFixed(1) + " %");

function showCode(body) {
  const link = byId("save"), url = new URL(PATH, location);
  const name = (body.name || "drawing.png").replace(/[^\w.-]+/g, "_");
  const token = sessionStorage.getItem("token");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(body);
  link.download = link.textContent = name;
  byId("curl").textContent =
    `curl ${token ? '-H "Authorization: Bearer $TOKEN" ' : ""}--data-binary @${name} '${url}'`;
  const headers = token ? ', {"Authorization": "Bearer " + os.environ["TOKEN"]}' : "";
  byId("python").textContent = `import json${token ? ", os" : ""}
from urllib.request import Request, urlopen

with open("${name}", "rb") as file:
    request = Request("${url}", file.read()${headers})
print(json.load(urlopen(request))["digits"][0])`;
}

function show(text, remark, isWarning = false) {
  answerShown.textContent = text;
  note.textContent = remark;
  note.classList.toggle("warn", isWarning);
  byId("details").hidden = true;
}

function showAnswer({ model_name, model_version, digits: [found] }, took) {
  if (found.error) return show("", found.error);
  show(found.digit, confidence(found.probability, found.rejected, took), found.rejected);
  byId("details").hidden = false;
  byId("served").textContent = `Answered by ${model_name}, version ${model_version}.`;
  showBars(found.probabilities, found.digit);
  showSeen(found.image);
}

function showBars(probabilities, best) {
  const rows = probabilities.map((probability, digit) => {
    const row = document.createElement("li"), name = document.createElement("span");
    const bar = document.createElement("meter"), share = document.createElement("span");
    row.className = digit === best ? "first" : "";
    name.textContent = digit;
    bar.value = probability;
    bar.setAttribute("aria-label", `probability of ${digit}`);
    share.textContent = percent(probability);
    row.append(name, bar, share);
    return row;
  });
  byId("bars").replaceChildren(...rows);
}

function showSeen(image) {
  const target = byId("seen").getContext("2d"), pixels = target.createImageData(28, 28);
  const levels = atob(image);
  for (let i = 0; i < 784; i++) {
    pixels.data.fill(levels.charCodeAt(i), 4 * i, 4 * i + 3);
    pixels.data[4 * i + 3] = 255;
  }
  target.putImageData(pixels, 0, 0);
}

function changed() {
  repaint();
  ask();
}

function pointOf(event) {
  const place = canvas.getBoundingClientRect();
  return [
    ((event.clientX - place.left) / place.width) * canvas.width,
    ((event.clientY - place.top) / place.height) * canvas.height,
  ];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  picture = null;
  pen = null;
  stroke = [pointOf(event)];
  strokes.push(stroke);
  changed();
});
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  stroke.push(...(events.length ? events : [event]).map(pointOf));
  changed();
});

canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
  if (event.key !== " " && !moves[event.key]) return;
  event.preventDefault();
  pen ||= { x: canvas.width / 2, y: canvas.height / 4, isDown: false };
  if (event.key === " ") {
    pen.isDown = !pen.isDown;
    if (!pen.isDown) return repaint();
    picture = null;
    strokes.push([[pen.x, pen.y]]);
    return changed();
  }
  const [dx, dy] = moves[event.key];
  pen.x = Math.min(canvas.width, Math.max(0, pen.x + dx));
  pen.y = Math.min(canvas.height, Math.max(0, pen.y + dy));
  if (!pen.isDown) return repaint();
  strokes.at(-1).push([pen.x, pen.y]);
  changed();
});

function undo() {
  strokes.pop();
  changed();
}
byId("undo").addEventListener("click", undo);
addEventListener("keydown", (event) => {
  const isUndo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  if (!isUndo || !strokes.length || event.target === byId("token")) return;
  event.preventDefault();
  undo();
});
byId("example").addEventListener("click", () => {
  picture = pen = null;
  strokes = EXAMPLE.split("|").map((line) => line.split(" ").map((point) => {
    const [x, y] = point.split(",");
    return [40 + 40 * x, 120 + 40 * y];
  }));
  changed();
});
byId("clear").addEventListener("click", () => {
  strokes = [];
  picture = pen = null;
  changed();
  canvas.focus();
});
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value);
  ask();
});

async function take(blob) {
  if (!blob) return;
  strokes = [];
  try {
    picture = { blob, bitmap: await createImageBitmap(blob) };
  } catch {
    picture = { blob, bitmap: document.createElement("canvas") }; // the server reads more kinds
  }
  repaint();
  ask();
}
for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = "";
  });
}
const paper = document.querySelector(".paper");
for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    paper.classList.toggle("dropping", isOver);
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
repaint();
