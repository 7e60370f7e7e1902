"""Text in, its label and score out, around a network that takes counts of twelve words."""

import json

import numpy as np

import serving


class Sentiment(serving.Handler):
    inputs = {"text": serving.Text()}
    outputs = {"label": serving.Text(), "score": serving.Array("float32")}
    batching = True

    def setup(self, folder):
        self.places = json.loads((folder / "words.json").read_text())

    def preprocess(self, text):
        counts = np.zeros((len(text), len(self.places)), np.float32)
        for row, each in enumerate(text):
            for word in each.lower().split():
                if word in self.places:
                    counts[row, self.places[word]] += 1
        return counts

    def postprocess(self, logits):
        score = 1 / (1 + np.exp(-logits[:, 0]))
        return {"label": np.where(score > 0.5, "good", "bad"), "score": score}
