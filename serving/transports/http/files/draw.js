// Draw a digit, have it read while drawing; pictures by file, drop, paste or camera, too.
"use strict";

const PEN = 40; // pixels of the canvas, 640 x 640
const SENT = 0.5; // scale of the drawing that is sent
const STEP = 20; // of the pen that the arrow keys move
const byId = (id) => document.getElementById(id);
const canvas = byId("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
const answerShown = byId("answer"), note = byId("note");

let strokes = []; // each a list of [x, y]
let picture = null; // an ImageBitmap and its blob, instead of strokes
let asking = null; // the AbortController of the request in progress
let pen = null; // where the keyboard's pen is, and whether it is down

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawStrokes(target, colour, scale = 1) {
  target.strokeStyle = target.fillStyle = colour;
  target.lineWidth = PEN * scale;
  target.lineCap = target.lineJoin = "round";
  for (const stroke of strokes) {
    target.beginPath();
    target.moveTo(stroke[0][0] * scale, stroke[0][1] * scale);
    for (const [x, y] of stroke) target.lineTo(x * scale, y * scale);
    if (stroke.length === 1) target.lineTo(stroke[0][0] * scale + 0.1, stroke[0][1] * scale);
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

// Only the newest drawing is of interest: a new request ends the one before.
async function ask() {
  if (asking) asking.abort();
  const request = (asking = new AbortController());
  if (!strokes.length && !picture) return show(null, "");
  try {
    const body = picture ? picture.blob : drawing();
    const form = new FormData(); // of its files, one that can't be read is an answer, too
    form.append("picture", body);
    const headers = {};
    const token = sessionStorage.getItem("token");
    if (token) headers.Authorization = "Bearer " + token;
    const started = performance.now();
    const query = "?image&reject_below=" + byId("threshold").value / 100;
    const response = await fetch("v1/digits" + query, { method: "POST", body: form, headers, signal: request.signal });
    const content = await response.json();
    const took = performance.now() - started;
    byId("access").hidden = response.status !== 401;
    const error = response.ok && content.digits[0].error;
    if (error) show(null, error);
    else if (response.ok) show(content, `${took.toFixed(0)} ms`);
    else show(null, content.detail || response.statusText, true);
  } catch (error) {
    if (error.name !== "AbortError") show(null, "The server does not answer. Is it still running?", true);
  } finally {
    if (asking === request) asking = null;
  }
}

function show(content, text, isWarning = false) {
  const digit = content ? content.digits[0] : null;
  answerShown.textContent = digit ? digit.digit : "";
  if (digit) {
    const share = (100 * digit.probability).toFixed(1);
    text = `${share} %${digit.rejected ? ": I am not sure" : ""} · ${text}`;
  }
  note.textContent = text;
  note.classList.toggle("warn", isWarning || Boolean(digit && digit.rejected));
  byId("details").hidden = !digit;
  if (digit) showDigit(digit);
}

function showDigit({ digit, probabilities, image }) {
  const rows = probabilities.map((probability, index) => {
    const row = document.createElement("li"), name = document.createElement("span");
    const bar = document.createElement("meter"), share = document.createElement("span");
    row.className = index === digit ? "first" : "";
    name.textContent = index;
    bar.value = probability;
    bar.setAttribute("aria-label", `probability of ${index}`);
    share.textContent = (100 * probability).toFixed(1) + " %";
    row.append(name, bar, share);
    return row;
  });
  byId("bars").replaceChildren(...rows);
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
  strokes.push([pointOf(event)]);
  changed();
});
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  strokes.at(-1).push(...(events.length ? events : [event]).map(pointOf));
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

byId("undo").addEventListener("click", () => {
  strokes.pop();
  changed();
});
byId("clear").addEventListener("click", () => {
  strokes = [];
  picture = pen = null;
  changed();
  canvas.focus();
});
byId("threshold").addEventListener("input", () => {
  byId("threshold-shown").textContent = byId("threshold").value + " %";
  ask();
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
