// How the page reads a picture and shows the answer: its numbers, not one digit alone.
"use strict";

let found = []; // the digits of numbers, each with its box in the pixels of what was sent

// One rule: the reader of numbers says how many digits there are, and how sure it is of all of
// them together. A single digit's ten bars have that confidence; several have a bar each.
const reader = {
  path: "v1/numbers?drawing",
  example: "1,0 0,6 0,6 6,6|4,3 4,10|8,3 9,1 11,0 13,1 13,4 11,7 8,10 8,10 14,10", // 42
  show({ pictures: [{ error, numbers }] }, took) {
    if (error) return show("", error);
    if (!numbers.length) return show("", "Nothing here looks like digits.");
    const sure = numbers.reduce((product, number) => product * number.probability, 1);
    const rejected = numbers.some((number) => number.rejected);
    show(numbers.map((number) => number.text).join(" "), confidence(sure, rejected, took), rejected);
    const digits = numbers.flatMap((number) => number.digits), [first] = digits;
    const isOne = digits.length === 1;
    byId("details").hidden = false;
    byId("seen").parentElement.hidden = !isOne;
    if (isOne) {
      const scale = sure / first.probability;
      showClasses(first.probabilities.map((share) => share * scale), first.digit);
      return showSeen(first.image);
    }
    showBars(digits.map(({ digit, probability }) => [digit, probability]));
    found = digits;
    repaint();
  },
  code: `for number in json.load(urlopen(request))["pictures"][0]["numbers"]:
    print(number["text"], number["probability"])`,
  clear() {
    if (found.length) {
      found = [];
      repaint();
    }
  },
  paint() { // each digit of a number in its box
    const place = picture ? placeOf(picture.bitmap) : { left: 0, top: 0, width: canvas.width };
    const scale = picture ? place.width / picture.bitmap.width : 1 / SENT;
    context.strokeStyle = style("--accent");
    context.lineWidth = 2;
    const size = 16 * canvas.width / canvas.clientWidth; // of the letters: 16 pixels of the window
    context.font = `600 ${size}px system-ui, sans-serif`;
    for (const { digit, box } of found) {
      const x = place.left + box.left * scale - 4, y = place.top + box.top * scale - 4;
      const height = (box.bottom - box.top) * scale + 8;
      context.strokeRect(x, y, (box.right - box.left) * scale + 8, height);
      const top = y > 1.2 * size ? y - 1.2 * size : y + height;
      context.fillStyle = style("--accent"); // a plate: there may be ink behind, or a photo
      context.fillRect(x - 1, top, size, 1.2 * size);
      context.fillStyle = style("--on-accent");
      context.fillText(digit, x + 0.2 * size, top + 0.95 * size);
    }
  },
};

document.title = "Draw digits";
document.querySelector("h1").textContent = "Draw a digit, or a number";
