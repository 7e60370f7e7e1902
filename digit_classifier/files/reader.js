// How the page reads a picture and shows the answer: one digit. An application that has a file of this
// name replaces it. Its functions use those of draw.js, which is loaded behind it.
"use strict";

const reader = {
  path: "v1/digits",
  example: "5,0 4,6 4,6 10,6|8,3 8,10", // a 4, by points on the paper, 14 x 10
  show({ digits: [{ error, digit, probability, probabilities, rejected, image }] }, took) {
    if (error) return show("", error);
    show(digit, confidence(probability, rejected, took), rejected);
    byId("details").hidden = false;
    showClasses(probabilities, digit);
    showSeen(image);
  },
  code: 'print(json.load(urlopen(request))["digits"][0])',
  clear() {}, // when an answer no longer counts
  paint() {}, // over the drawing
};
