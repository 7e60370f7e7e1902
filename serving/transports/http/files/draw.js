// Draw digits, have them read while drawing; pictures by file, drop, paste or camera, too.
"use strict";

const PEN = 28; // pixels of the canvas, 640 x 640
const SENT = 0.5; // scale of the drawing that is sent
const ENOUGH = 0.95; // probability of a number from which it is not read as one digit, too
const STEP = 20; // of the pen that the arrow keys move
const byId = (id) => document.getElementById(id);
const canvas = byId("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
const answerShown = byId("answer"), note = byId("note");

let strokes = []; // each a list of [x, y]
let picture = null; // an ImageBitmap and its blob, instead of strokes
let isAsking = false, isChanged = false; // whether a request is in progress, and out of date
let found = []; // the digits of numbers, each with its box in the pixels of what was sent
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

// Each digit of a number in its box.
function drawBoxes() {
  const place = picture ? placeOf(picture.bitmap) : { left: 0, top: 0, width: canvas.width };
  const scale = picture ? place.width / picture.bitmap.width : 1 / SENT;
  context.strokeStyle = context.fillStyle = style("--accent");
  context.lineWidth = 2;
  context.font = "600 22px system-ui, sans-serif";
  for (const { digit, box } of found) {
    const x = place.left + box.left * scale - 4, y = place.top + box.top * scale - 4;
    context.strokeRect(x, y, (box.right - box.left) * scale + 8, (box.bottom - box.top) * scale + 8);
    context.fillText(digit, x, y > 24 ? y - 5 : (box.bottom * scale + place.top + 26));
  }
}

function repaint() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (picture) {
    const place = placeOf(picture.bitmap);
    context.drawImage(picture.bitmap, place.left, place.top, place.width, place.height);
  }
  drawStrokes(context, style("--ink"));
  drawBoxes();
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
  if (!strokes.length && !picture) return show("", "");
  try {
    const body = picture ? picture.blob : drawing();
    const started = performance.now();
    const numbers = await answerTo("v1/numbers", body);
    const answer = numbers && numbers.pictures[0];
    if (!answer) return;
    // What is no number for sure may be one digit: that is read with less doubt whether it is any.
    const sure = answer.error ? 1 : certaintyOf(answer.numbers);
    const digits = sure < ENOUGH && (await answerTo("v1/digits", body));
    const one = digits && digits.digits[0];
    const took = `${(performance.now() - started).toFixed(0)} ms`;
    if (one && (one.error ? !sure : one.probability > sure)) showOne(one, took);
    else showNumbers(answer, took);
  } catch {
    show("", "The server does not answer. Is it still running?", true);
  }
}

// Returns the answer; null, once it has shown why, if there is none.
async function answerTo(path, body) {
  const form = new FormData(); // of its files, one that can't be read is an answer, too
  form.append("picture", body);
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = "Bearer " + token;
  const query = "?image&reject_below=" + byId("threshold").value / 100;
  const response = await fetch(path + query, { method: "POST", body: form, headers });
  const content = await response.json();
  byId("access").hidden = response.status !== 401;
  if (response.ok) return content;
  show("", content.detail || response.statusText, true);
  return null;
}

function showNumbers({ error, numbers }, took) {
  if (error) return show("", error);
  const digits = numbers.flatMap((number) => number.digits);
  const rejected = numbers.some((number) => number.rejected);
  if (digits.length === 1) return showOne({ ...digits[0], rejected }, took);
  const text = numbers.map((number) => number.text).join(" ");
  show(text, certainty(certaintyOf(numbers), rejected, took), rejected);
  found = digits;
  repaint();
}

// The probability that all numbers are right; 0 if there is none.
function certaintyOf(numbers) {
  return numbers.length && numbers.reduce((product, number) => product * number.probability, 1);
}

function showOne(digit, took) {
  if (digit.error) return show("", digit.error);
  show(digit.digit, certainty(digit.probability, digit.rejected, took), digit.rejected);
  byId("details").hidden = false;
  showDigit(digit);
}

function certainty(probability, rejected, took) {
  return `${(100 * probability).toFixed(1)} %${rejected ? ": I am not sure" : ""} · ${took}`;
}

function show(text, remark, isWarning = false) {
  answerShown.textContent = text;
  note.textContent = remark;
  note.classList.toggle("warn", isWarning);
  byId("details").hidden = true;
  if (found.length) {
    found = [];
    repaint();
  }
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
